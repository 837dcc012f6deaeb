#!/usr/bin/env bash
# Trains under ThreadSanitizer, as the reference and as machine code (of which the threads around it are
# seen, not the code itself): by clang, whose OpenMP (libomp) tells what threads wait for. Races that are
# planted must be found: one between OpenMP's threads, and one in a copy of the loader.
# usage: tests/tsan.sh BUILD      (a folder of its own; it may be there already)
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: tests/tsan.sh BUILD" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66"
flags=(-g -O1 -fsanitize=thread)

fail() {
    echo "tsan: $*" >&2
    exit 1
}

fixed() { # COMMAND...: it needs addresses that Linux does not draw at random
    if setarch -R true 2>&-; then setarch -R "$@"; else "$@"; fi
}

expect_race() { # COMMAND...: threads must meet, which they do in most runs
    local try
    for try in 1 2 3 4 5 6 7 8 9 10; do
        if fixed "$@" >race.log 2>&1; then continue; fi
        grep -q "ThreadSanitizer: data race" race.log || fail "no race is told: $* $(cat race.log)"
        return
    done
    fail "in $try runs, nothing is found: $*"
}

cat >try.c <<'END'
int main(void)
{
    int sum = 0;
#pragma omp parallel for SHARING
    for (int i = 0; i < 10000; i++) sum += i;
    return sum != 49995000 && QUIET;
}
END
if ! clang "${flags[@]}" -fopenmp '-DSHARING=reduction(+ : sum)' -DQUIET=1 try.c -o try 2>try.log || ! fixed ./try; then
    echo "tsan: SKIPPED: no clang with ThreadSanitizer and libomp"
    exit 77
fi
export OMP_NUM_THREADS=3
clang "${flags[@]}" -fopenmp -DSHARING= -DQUIET=0 try.c -o try
expect_race ./try

cmake -S "$root" -B . -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_C_FLAGS="${flags[*]} -Wno-error" --log-level=WARNING >/dev/null
cmake --build . --target raftc >build.log || fail "$(tail -n 20 build.log)"

write_images() { # PART COUNT: IDX files of noise in three classes
    local count i
    count=$(printf '\\%o' "$2")
    mkdir -p images
    {
        printf '\0\0\10\3\0\0\0%b\0\0\0\34\0\0\0\34' "$count"
        head -c $((28 * 28 * $2)) /dev/urandom
    } >"images/$1-images-idx3-ubyte"
    {
        printf '\0\0\10\1\0\0\0%b' "$count"
        for ((i = 0; i < $2; i++)); do printf '%b' "\\$((i % 3))"; done
    } >"images/$1-labels-idx1-ubyte"
}

write_images train 96
write_images t10k 24
cat >run.yaml <<'END'
dataset_name: fashion_mnist
data_path: images
in_channels: 1
num_classes: 3
pretrained_image_size: 28
layers:
- {depth: 1, dim: 8, patch_size: 7, raft_size: 2}
batch_size: 16
lr: 1e-2
num_epochs: 2
mixup_alpha: 0.8
mixup_p: 0.5
drop_path_rate: 0.2
ema_decay: 0.9
accumulation_steps: 3
checkpoint_every: 3
END
for target in reference cpu; do
    fixed ./raftc train run.yaml --target $target --threads 3 -o "run-$target" >run.log 2>&1 ||
        fail "--target $target: $(cat run.log)"
done

# A loader that hands out batches before they are made, which takes a while.
sed -e 's/slot->done < size_of_batch(loader, loader->low)/false/' \
    -e 's/^static void \*work(.*/#include <unistd.h>\n&/' -e 's/^ *fill_place(loader, number);/usleep(2000);\n&/' \
    "$root/runtime/train/loader.c" >loader.c
grep -q usleep loader.c || fail "no delay could be planted in the loader"
if cmp -s loader.c "$root/runtime/train/loader.c"; then fail "no race could be planted in the loader"; fi
clang "${flags[@]}" -I"$root" -I. -c loader.c -o loader.o
link=$(ninja -t commands raftc | tail -n 1)
eval "$(sed 's/ -o raftc / -o racing loader.o /' <<<"$link")"
expect_race ./racing train run.yaml --target reference --threads 3 --set num_workers=6 -o run-racing
grep -q "loader" race.log || fail "another race than the planted one: $(cat race.log)"
echo "tsan: good"
