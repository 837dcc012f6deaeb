#!/usr/bin/env bash
# Packs raftc without LLVM and the goldens' runners, with the shared libraries that they need, to be
# carried to a machine with a GPU that has none of them: RAFTC_PACK=FOLDER bench/gpu.sh
# usage: bench/gpu_pack.sh FOLDER [BUILD]     (BUILD: default build-pack)
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -ge 1 ] || { echo "usage: bench/gpu_pack.sh FOLDER [BUILD]" >&2; exit 2; }
folder=$1 build=${2:-build-pack}
# They find the libraries beside them, and no other program does.
cmake -S . -B "$build" -G Ninja -DRAFTC_LLVM=OFF \
    -DCMAKE_BUILD_RPATH='$ORIGIN/lib' -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags
cmake --build "$build" --target raftc golden golden_train
rm -rf "$folder"
mkdir -p "$folder/lib"
strip -o "$folder/raftc" "$build/raftc"
strip -o "$folder/golden" "$build/golden"
strip -o "$folder/golden_train" "$build/golden_train"
# All but what belongs to the C library of the machine.
ldd "$build/raftc" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' |
    grep -v -E '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' |
    while read -r library; do cp -L "$library" "$folder/lib/"; done
du -sh "$folder"
