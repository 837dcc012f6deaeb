#!/usr/bin/env bash
# Builds raftc without LLVM, quickly, and runs the command line's tests with it.
# usage: tests/without_llvm.sh FOLDER      (to build in; it may be there already)
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -eq 1 ] || { echo "usage: tests/without_llvm.sh FOLDER" >&2; exit 2; }
cmake -S . -B "$1" -G Ninja -DRAFTC_LLVM=OFF -DCMAKE_BUILD_TYPE=Debug --log-level=WARNING
cmake --build "$1" --target raftc test_cli golden
"$1/raftc" --version | grep -F 'without LLVM'
if ldd "$1/raftc" | grep -F LLVM; then exit 1; fi

status=0
"$1/raftc" run tests/cli/block.ir --weights @fill @fill || status=$?
[ "$status" -eq 5 ] || { echo "without_llvm: --target cpu ends with $status, not 5" >&2; exit 1; }
"$1/test_cli"
"$1/golden" reference tests/data/goldens/forward-tiny.safetensors
echo "without_llvm: good"
