#!/usr/bin/env bash
# Training by several processes that mpirun starts: the same loss as one alone, the same bits each time, and
# an end within 30 s where one dies.
# usage: tests/mpi.sh RAFTC
set -euo pipefail
if ! command -v mpirun >/dev/null; then
    echo "mpi: skipped: no mpirun"
    exit 77
fi
raftc=$(realpath "$1")
tests=$(dirname "$(realpath "$0")")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
ln -s "$tests/cli" cli
export OMP_WAIT_POLICY=passive

fail() {
    echo "mpi: $*" >&2
    exit 1
}

train() { # PROCESSES FOLDER OPTION...
    local alone=(env)
    [ "$1" -eq 1 ] || alone=(mpirun --allow-run-as-root --oversubscribe --bind-to none -n "$1")
    "${alone[@]}" "$raftc" train cli/grey.yaml --image 8x8 --target reference --threads 1 \
        --set log_every_iters=1 -o "$2" "${@:3}"
}

losses() { # FOLDER
    sed -n 's/.*"training\/loss":\([-0-9.e+]*\).*/\1/p' "$1/metrics.jsonl"
}

train 1 one --steps 20 >one.txt
train 4 four --steps 20 >four.txt
[ "$(losses one | wc -l)" -eq 20 ] || fail "$(losses one | wc -l) losses, not 20"
paste <(losses one) <(losses four) | awk '
    { off = $1 - $2; if (off < 0) off = -off; if (off > most * $1) most = off / $1 }
    END { print "1 and 4 processes: loss within " most; exit !(NR == 20 && most <= 1e-5) }' ||
    fail "losses differ"
grep -q '  exchanged [0-9]* %  ' four.txt || fail "the progress does not tell of the exchange: $(cat four.txt)"
[ "$(grep -c . one.txt)" -eq "$(grep -c . four.txt)" ] || fail "more than one process speaks"
one=$(grep ^epoch.*accuracy one.txt | sed 's/loss.*//')
[ "$one" = "$(grep ^epoch.*accuracy four.txt | sed 's/loss.*//')" ] || fail "validation differs"

# Stopped and taken up again: the same bits as in one go.
train 4 parts --steps 9 -q >/dev/null
train 4 parts --steps 20 --resume -q >/dev/null
cmp four/checkpoint-0000000020.safetensors parts/checkpoint-0000000020.safetensors

# Sums begin while the backward pass runs, or, as numbers are checked after each of its steps, when all of it
# has: the same bits. Batches are in parts, and only the last one's gradients are final.
for kind in during after; do
    train 2 "$kind" --target cpu --set accumulation_steps=2 --steps 3 -q $(
        [ "$kind" = during ] || echo --check-numerics) >/dev/null
done
cmp {during,after}/checkpoint-0000000003.safetensors

# By another number of processes it goes on, which is said.
train 2 parts --steps 22 --resume >two.txt 2>&1
[ "$(grep -c 'the run there has processes 4, this one 2' two.txt)" -eq 1 ] || fail "$(cat two.txt)"

# One dies. Its end ends the run, which goes on from its checkpoint.
train 4 dead --set num_epochs=100000 -q >dead.txt 2>&1 &
job=$!
# Only the last few are kept, so that any of them will do.
until compgen -G 'dead/checkpoint-*.safetensors' >/dev/null; do
    kill -0 "$job" 2>&- || fail "the run ended before its first checkpoint: $(cat dead.txt)"
    sleep 0.1
done
victim=
for process in $(pgrep -P "$job" raftc || pgrep -P "$(pgrep -P "$job" mpirun)" raftc); do
    if grep -qz '^OMPI_COMM_WORLD_RANK=2$' "/proc/$process/environ"; then victim=$process; fi
done
[ -n "$victim" ] || fail "process 2 is not to be found"
before=$SECONDS
kill -KILL "$victim"
if wait "$job"; then fail "the run ended well without process 2"; fi
[ $((SECONDS - before)) -le 30 ] || fail "$((SECONDS - before)) s until the end"
grep -q 'rank 2' dead.txt || fail "nobody says who died: $(cat dead.txt)"
newest=$(find dead -name 'checkpoint-*.safetensors' | sort | tail -n 1)
step=$(basename "${newest#dead/checkpoint-}" .safetensors)
train 4 dead --set num_epochs=100000 --resume --steps $((10#$step + 2)) -q >/dev/null

# One fails: it says so, and takes the others along.
if train 4 dead --set num_epochs=7 --resume >failed.txt 2>&1; then fail "other epochs are not refused"; fi
grep -q 'process . of 4 ends the run' failed.txt || fail "$(cat failed.txt)"
