#!/usr/bin/env bash
# Runs what README.md shows, so that it stays true: every ```sh run block, in order, in a copy of the
# places that they name. A ```c FILE or ```cmake FILE block is first written to that file. What a block
# prints must be the ```text block after it, if there is one, where ... stands for anything.
# usage: tests/test_readme.sh RAFTC
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: tests/test_readme.sh RAFTC" >&2; exit 2; }
raftc=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
ln -s "$(dirname "$raftc")" build
ln -s "$root/models" "$root/tests" .

awk '/^```c(make)? [^ ]+$/ { file = $2; printf "" >file; next }
     /^```sh run$/  { file = shown = sprintf("block%02d", ++blocks); next }
     /^```sh$/      { file = shown = ""; next } # not run: what it prints is not compared
     /^```text$/    { file = shown ? shown ".want" : ""; next }
     /^```/         { file = ""; next }
     file != ""     { print >file }
     END { print "readme: " blocks + 0 " blocks"; exit blocks == 0 }' "$root/README.md"
compared=0
for block in block??; do
    cat "$block"
    bash -euo pipefail "$block" >printed
    [ -f "$block.want" ] || continue
    want=$(sed 's/[][\\*?]/\\&/g; s/\.\.\./*/g' "$block.want")
    # shellcheck disable=SC2053 # the right side is a pattern
    if [[ $(cat printed) != $want ]]; then
        diff "$block.want" printed || true
        echo "readme: this is printed, and README.md shows something else"
        exit 1
    fi
    compared=$((compared + 1))
done
echo "readme: all commands ran; $compared outputs are as shown"
[ "$compared" -gt 0 ]
