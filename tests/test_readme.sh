#!/usr/bin/env bash
# Runs what README.md shows, so that it stays true: every ```sh run block, in order, in a copy of the
# places that they name. A ```c FILE or ```cmake FILE block is first written to that file.
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
     /^```sh run$/  { file = "commands.sh"; blocks++; next }
     /^```/         { file = ""; next }
     file != ""     { print >file }
     END { print "readme: " blocks + 0 " blocks"; exit blocks == 0 }' "$root/README.md"
bash -euo pipefail -x commands.sh
echo "readme: all commands ran"
