#!/usr/bin/env bash
# Installs what is missing of .ci/packages.txt, configures, and builds.
# usage: tests/setup.sh [FOLDER [CMAKE_OPTION...]]     (default folder: build)
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-build}
shift || true

missing_packages() {
    local package
    for package in $(sed 's/#.*//' .ci/packages.txt); do
        case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
        *"ok installed") ;;
        *) echo "$package" ;;
        esac
    done
}

install_packages() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "setup: as root, please: apt-get install $*" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "setup: installing $*"
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "$@"
}

if command -v dpkg-query >/dev/null; then
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
else
    echo "setup: not a Debian system; the libraries in .ci/packages.txt must be there already" >&2
fi

echo "setup: building in $folder"
generator=()
[ -f "$folder/CMakeCache.txt" ] || generator=(-G Ninja)
cmake -S . -B "$folder" "${generator[@]}" --log-level=WARNING "$@"
cmake --build "$folder" --parallel "$(nproc)"
