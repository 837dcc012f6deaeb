#!/usr/bin/env bash
# Checks what the sources promise about themselves: sizes, includes only downstream, no unfinished work.
# usage: tests/check_sources.sh
set -euo pipefail
cd "$(dirname "$0")/.."

folders=(frontend ir passes backends runtime models tests bench)
mapfile -t sources < <(find "${folders[@]}" -path tests/data -prune -o \
    \( -name '*.c' -o -name '*.h' -o -name '*.def' \) -print | sort)
mapfile -t scripts < <(find "${folders[@]}" .ci -path tests/data -prune -o -type f \
    \( -name '*.sh' -o -name '*.py' -o -path .ci/run \) -print | sort)
faults=0

fault() {
    echo "check_sources: $*"
    faults=$((faults + 1))
}

# Sizes. A long function is pointed out, not refused.
for file in "${sources[@]}"; do
    lines=$(wc -l <"$file")
    [ "$lines" -le 600 ] || fault "$file: $lines lines, over 600"
    IFS= read -r first <"$file"
    [[ $first == '/*'* ]] || fault "$file:1: does not start with a comment that says its role"
done
awk 'FNR == 1 { start = 0 }
     /^[A-Za-z_].*[^;]$/ { name = $0 }
     /^{/ { start = FNR }
     /^}/ { if (start && FNR - start > 80)
                printf "note: %s:%d: %d lines: %s\n", FILENAME, start, FNR - start, name
            start = 0 }' "${sources[@]}"

# Every folder says in at most 30 lines what lives there.
for folder in "${folders[@]}"; do
    if [ ! -f "$folder/README.md" ]; then
        fault "$folder/README.md is missing"
    elif [ "$(wc -l <"$folder/README.md")" -gt 30 ]; then
        fault "$folder/README.md: over 30 lines"
    fi
done

# Includes. The driver, frontend/raftc*.c, is where the parts meet.
check_includes() { # FOLDER ALLOWED_FOLDER...
    local allowed file included
    allowed=$(IFS='|' && echo "${*:2}")
    for file in "${sources[@]}"; do
        [[ $file == "$1"/* && $file != frontend/raftc* ]] || continue
        while read -r included; do
            [[ $included =~ ^($allowed)/ || $included != */* ]] ||
                fault "$file: includes \"$included\", which is not downstream of $1/"
        done < <(sed -n 's/^#include "\([^"]*\)".*/\1/p' "$file")
    done
}
check_includes runtime runtime
check_includes ir ir
check_includes frontend frontend ir
check_includes passes passes ir
check_includes backends backends passes ir runtime

# Unfinished work. (The words are broken up so that this file passes.)
words='TO''DO|FIX''ME|XX''X|HA''CK'
while IFS= read -r line; do
    fault "$line"
done < <(grep -nEw "$words" CMakeLists.txt "${sources[@]}" "${scripts[@]}" || true)

echo "check_sources: ${#sources[@]} sources, ${#scripts[@]} scripts, $faults faults"
[ "${#sources[@]}" -gt 0 ] && [ "$faults" -eq 0 ]
