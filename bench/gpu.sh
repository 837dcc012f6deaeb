#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in under 8 minutes: goldens, compute-sanitizer, PyTorch beside
# raftc, and a profile of the kernels.
# usage: bench/gpu.sh [FOLDER]      (default: bench/results/DATE-DEVICE)
#
# RAFTC_PACK names a folder made by bench/gpu_pack.sh on another machine; without it, raftc is built
# here, without LLVM. RAFTC_GPU_SECONDS (470) is what all of it may take. Every stage has a limit and a log
# of its own in FOLDER; one that fails or runs out of time does not stop the next. The last lines, kept in
# summary.txt, tell how each stage ended.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
begin=$SECONDS seconds=${RAFTC_GPU_SECONDS:-470}

device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr -c 'A-Za-z0-9\n' '-')
results=${1:-bench/results/$(date +%F)-${device:-no-device}}
mkdir -p "$results" || exit 1
results=$(realpath "$results")
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$(mktemp -d)}
export TORCHINDUCTOR_CACHE_DIR=$XDG_CACHE_HOME/torchinductor TORCHINDUCTOR_FX_GRAPH_CACHE=1
: >"$results/stages.txt"

# What a stage runs under a limit of its own has to end with it: --foreground leaves it in the stage's group.
stage() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS how
    shift 2
    if timeout --kill-after=5 "$limit" "$@" >"$results/$name.log" 2>&1 </dev/null; then
        how=good
    else
        how="FAILED ($?)"
    fi
    printf '%-24s %-12s %4d s\n' "$name" "$how" $((SECONDS - start)) | tee -a "$results/stages.txt"
}

# ---- raftc -------------------------------------------------------------------------------------
if [ -n "${RAFTC_PACK:-}" ]; then
    pack=$(realpath "$RAFTC_PACK")
    chmod +x "$pack/raftc" "$pack/golden" "$pack/golden_train"
    raftc=$pack/raftc golden=$pack/golden golden_train=$pack/golden_train
else
    build() {
        cmake -S . -B build-gpu -G Ninja -DRAFTC_LLVM=OFF &&
            cmake --build build-gpu -j --target raftc golden golden_train
    }
    export -f build
    stage build 120 bash -c build
    raftc=$root/build-gpu/raftc golden=$root/build-gpu/golden golden_train=$root/build-gpu/golden_train
fi
export raftc golden golden_train root results

machine() {
    nvidia-smi
    "$raftc" --version
    uname -r
    nproc
    gcc --version | head -n 1
    nvcc --version 2>/dev/null || /usr/local/cuda/bin/nvcc --version
    python3 -c 'import torch; print("torch", torch.__version__)'
}

# ---- what needs the GPU, but not alone -----------------------------------------------------------
libraries() {
    local model status=0
    mkdir -p "$results/libraries"
    for model in s m l; do
        "$raftc" "models/raftmlp-$model.yaml" --target cuda --weights @fill -o "$results/libraries/" -v \
            2>&1 &
    done
    for model in s m l; do wait -n || status=1; done
    return $status
}

warm_torch() {
    local job
    for job in "l 256 f32" "m 256 f32" "s 256 f32" "l 1 f32" "m 1 f32" "s 1 f32" \
        "l 256 bf16" "l 1 bf16" "m 256 bf16" "m 1 bf16" "s 256 bf16" "s 1 bf16"; do
        echo "$job"
    done | TORCHINDUCTOR_COMPILE_THREADS=4 xargs -P 6 -L 1 timeout --foreground 150 python3 bench/gpu_peers.py warm
}

goldens() {
    ls tests/data/goldens/forward-*.safetensors | xargs -P 12 -n 1 timeout --foreground 185 "$golden" cuda
}

train_goldens() {
    ls tests/data/goldens/train-*.safetensors |
        xargs -P 6 -n 1 timeout --foreground 110 "$golden_train" "$raftc" cuda
}

sanitize() { # TOOL: runs of the tiny model, its kernels compiled before, and of one whose sums have spans; training
    local tool batch
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
    [ -n "$tool" ] || { echo "compute-sanitizer is not here: it is a part of the CUDA toolkit"; return 1; }
    cd tests && "$tool" --tool "$1" --error-exitcode 9 "$raftc" run cli/tiny.yaml --target cuda \
        --weights @fill @fill --batch 3 --features --output "$results/sanitized-$1.safetensors" || return 1
    for batch in 1 160; do # the shape for few images, and the usual one
        "$tool" --tool "$1" --error-exitcode 9 "$raftc" run cuda/spans.yaml --target cuda --weights @fill @fill \
            --batch "$batch" -q --output "$results/sanitized-$1.safetensors" || return 1
    done
    "$tool" --tool "$1" --error-exitcode 9 "$raftc" train cli/tiny.yaml --target cuda --weights @fill --data @fill \
        --batch 4 --steps 2 --set lr=0.002 -q --save "$results/sanitized-$1.safetensors"
}

# The same bits twice, alone and in a batch.
same_bits() {
    local folder=$results/bits batch
    mkdir -p "$folder"
    for batch in 1 7 64 64; do
        "$raftc" run models/raftmlp-s.yaml --target cuda --weights @fill @fill --batch "$batch" -q \
            --top 1 --output "$folder/$batch-$SECONDS.safetensors" >/dev/null || return 1
        sleep 1
    done
    python3 - "$folder" <<'END'
import glob, json, struct, sys
import numpy as np
runs = []
for path in sorted(glob.glob(sys.argv[1] + "/*.safetensors")):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8:8 + size])["logits"]["data_offsets"]
    runs.append(np.frombuffer(data[8 + size + begin:8 + size + end], np.uint32).reshape(-1, 1000))
least = min(map(len, runs))
same = all((run[:i] == other[:i]).all() for run in runs for other in runs
           for i in [min(len(run), len(other))])
print(len(runs), "runs of", [len(run) for run in runs], "images:", "same bits" if same else "DIFFERENT BITS")
sys.exit(not same or len(runs) < 4)
END
}
export -f machine libraries warm_torch goldens train_goldens sanitize same_bits

stage machine 40 bash -c machine
stage libraries 90 bash -c libraries
stage warm_torch $((seconds * 36 / 100)) bash -c warm_torch &
torch_warmer=$!
stage tiny 60 bash -c 'cd tests && "$raftc" run cli/tiny.yaml --target cuda --weights @fill @fill --batch 3'
sanitizers=()
for tool in memcheck racecheck synccheck initcheck; do
    stage "$tool" 120 bash -c "sanitize $tool" &
    sanitizers+=($!)
done
stage train_goldens 120 bash -c train_goldens &
sanitizers+=($!)
stage goldens 190 bash -c goldens
stage same_bits 60 bash -c same_bits
wait "$torch_warmer" "${sanitizers[@]}"

# ---- times: nothing else runs ----------------------------------------------------------------------
left() { # LIMIT: no more than this, nor than what is left
    local rest=$((seconds - (SECONDS - begin)))
    echo $((rest < 5 ? 5 : rest < $1 ? rest : $1))
}
for batch in 256 1; do
    for model in l m s; do
        stage "profile-$model-$batch" "$(left 30)" "$raftc" bench "models/raftmlp-$model.yaml" \
            --target cuda --batch $batch --profile
    done
done
for batch in 256 1; do
    for model in l m s; do
        stage "bench-$model-$batch" "$(left 20)" "$raftc" bench "models/raftmlp-$model.yaml" \
            --target cuda --batch $batch --json
    done
done

for model in s m l; do # the kernels are compiled first, for up to a minute
    stage "train-$model" "$(left 90)" "$raftc" bench "models/raftmlp-$model.yaml" --target cuda --train --batch 64
    stage "train-$model-torch" "$(left 30)" python3 bench/gpu_peers.py train "$model" 64
done

peers=$(left 170)
stage peers "$peers" python3 bench/gpu_peers.py time "$results/libraries" "$results/peers.json" \
    --seconds $((peers - 25))

# ---- summary -----------------------------------------------------------------------------------------
rm -rf "$results/libraries" "$results/bits"
{
    echo "device: ${device:-none}; $((SECONDS - begin)) s"
    cat "$results/stages.txt"
    echo
    grep -h '^golden' "$results/goldens.log" "$results/train_goldens.log"
    grep -h '^FAIL' "$results/goldens.log" "$results/train_goldens.log" | head -n 20
    for tool in memcheck racecheck synccheck initcheck; do
        echo "$tool: $(grep 'SUMMARY' "$results/$tool.log" | sort | uniq -c)"
    done
    tail -n 1 "$results/same_bits.log"
    echo
    cat "$results/peers.log" "$results"/train-*.log
    for batch in 256 1; do
        for model in l m s; do
            echo
            head -n 30 "$results/profile-$model-$batch.log"
        done
    done
} 2>&1 | tee "$results/summary.txt"
! grep -q FAILED "$results/stages.txt"
