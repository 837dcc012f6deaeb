#!/usr/bin/env bash
# Disks that are really full: a file system of 32 kB, and a limit to the size of files. Each command
# fails with its message, leaves its outputs as they were, and nothing else.
# usage: full_disk.sh RAFTC       (exit status 77, and a line, where no file system can be mounted)
set -euo pipefail
raftc=$(realpath "$1") tests=$(cd "$(dirname "$0")" && pwd)

if [ "${2:-}" != inside ]; then
    if ! problem=$(unshare --map-root-user --mount mount -t tmpfs none /mnt 2>&1); then
        echo "full_disk: skipped: $problem"
        exit 77
    fi
    exec unshare --map-root-user --mount "$0" "$raftc" inside
fi
mount -t tmpfs -o size=32k none /mnt
mkdir /mnt/temporary /mnt/outputs
export TMPDIR=/mnt/temporary
failed=0

fault() {
    echo "full_disk: $1"
    failed=1
}

# try REASON LIMIT OUTPUT... -- ARGUMENT...: LIMIT is of files, in kB
try() {
    local reason=$1 limit=$2 outputs=() status=0 output
    shift 2
    while [ "$1" != -- ]; do outputs+=("$1") && shift; done
    shift
    for output in "${outputs[@]}"; do echo "as it was" >"/mnt/outputs/$output"; done
    (ulimit -f "$limit" && cd /mnt/outputs && exec "$raftc" "$@") >/dev/null 2>/tmp/full_disk.$$ || status=$?
    [ "$status" -eq 1 ] || fault "$1 $2: exit status $status"
    grep -q "error: .*$reason" /tmp/full_disk.$$ || fault "$1 $2: $(cat /tmp/full_disk.$$)"
    for output in "${outputs[@]}"; do
        [ "$(cat "/mnt/outputs/$output")" = "as it was" ] || fault "$1 $2: $output has changed"
        rm -f "/mnt/outputs/$output"
    done
    [ -z "$(ls /mnt/outputs /mnt/temporary | grep -v :)" ] || fault "$1 $2 leaves $(ls /mnt/outputs /mnt/temporary)"
}

weights=$tests/data/goldens/tiny.safetensors image=$tests/cli/one-level.yaml
for case in "No space left on device:unlimited" "File too large:4"; do
    reason=${case%:*} limit=${case#*:}
    try "$reason" "$limit" out.safetensors -- convert "$weights" out.safetensors
    try "$reason" "$limit" out.pt -- convert "$weights" out.pt
    try "$reason" "$limit" out.safetensors -- run "$image" --image 224x224 --target reference \
        --weights @fill @fill --dump-input out.safetensors
    try "$reason" "$limit" made.ir -- "$tests/../models/raftmlp-s.yaml" --emit ir --passes= -o made
done
rm -f /tmp/full_disk.$$
[ "$failed" -eq 0 ] && echo "full_disk: 8 cases"
exit $failed
