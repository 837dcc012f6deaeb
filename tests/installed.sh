#!/usr/bin/env bash
# Uses raftc as people do who have installed it, from a tree that was moved after that.
# usage: tests/installed.sh CASE BUILD
#
# The case `tree` makes the tree in BUILD/installed/tree; the others need it and work beside it.
# Status 77: skipped.
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: tests/installed.sh CASE BUILD" >&2; exit 2; }
name=$1
build=$(realpath "$2")
root=$(realpath "$(dirname "$0")/..")
programs=$root/tests/installed
goldens=$root/tests/data/goldens
tree=$build/installed/tree/moved
strict=(-O2 -std=c11 -D_DEFAULT_SOURCE -Wall -Wextra -Wpedantic -Werror)

rm -rf "$build/installed/$name"
mkdir -p "$build/installed/$name"
cd "$build/installed/$name"
export PATH=$tree/bin:$PATH

fail() {
    echo "installed: $name: $*" >&2
    exit 1
}

skip() {
    echo "installed: $name: SKIPPED: $*" >&2
    exit 77
}

compile_tiny() { # OPTION_OF_RAFTC...
    raftc -q "$programs/tiny.yaml" --image 32x32 "$@"
}

# Installed where DESTDIR says, with a prefix of its own, and moved: nothing may know another place.
case_tree() {
    DESTDIR=$PWD/stage cmake --install "$build" --prefix /opt/raft >/dev/null
    mv stage/opt/raft moved
    [ -z "$(find stage -type f)" ] || fail "outside of the prefix: $(find stage -type f)"
    local file
    for file in bin/raftc include/raft/raft.h share/man/man1/raftc.1 share/raft/raft.py \
        share/raft/models/raftmlp-l.yaml share/raft/models/finetune/cars-org-mixer.yaml; do
        [ -f "moved/$file" ] || fail "$file is missing"
    done
    for file in libraft.a raft.pc raftConfig.cmake raftConfigVersion.cmake; do
        [ -n "$(find moved -name "$file")" ] || fail "$file is missing"
    done
    [ "$(cd moved/include/raft && echo *)" = "program.h raft.h shell.h" ] ||
        fail "other headers than the public ones: $(ls moved/include/raft)"
    if grep -rlF -e "$root/" -e "$build" moved; then
        fail "these files name a folder of the build"
    fi
    raftc --version
    local models=$tree/share/raft/models
    raftc run "$models/fashion-mnist.yaml" --weights "$models/fashion-mnist.safetensors" \
        --labels "$models/fashion-mnist.labels" --top 1 "$models/fashion/0-ankle-boot.png" |
        grep "ankle boot" || fail "the model that is trained does not know an ankle boot"
}

# A C program by pkg-config, which needs the runtime library.
case_c() {
    local picture=$root/models/photos/china.jpg flags
    PKG_CONFIG_PATH=$(dirname "$(find "$tree" -name raft.pc)")
    export PKG_CONFIG_PATH
    read -ra flags < <(pkg-config --cflags --libs raft)
    compile_tiny
    cc "${strict[@]}" "$programs/user.c" tiny.a -I. "${flags[@]}" -o user
    raftc run -q "$programs/tiny.yaml" --image 32x32 --weights @fill "$picture" \
        --dump-input input.safetensors >/dev/null
    ./user "$goldens/tiny.safetensors" "$goldens/forward-tiny.safetensors" "$picture" \
        input.safetensors
}

# A C++ program by CMake, which compiles the model when it is built.
case_cmake() {
    command -v c++ >/dev/null || skip "there is no C++ compiler"
    cp "$programs"/{CMakeLists.txt,user.cpp,golden.h,tiny.yaml} .
    cmake -S . -B out -DCMAKE_PREFIX_PATH="$tree" --log-level=WARNING \
        -DCMAKE_CXX_FLAGS="-Wall -Wextra -Werror" >/dev/null
    cmake --build out >log || { cat log; fail "the project does not build"; }
    out/user "$goldens/tiny.safetensors" "$goldens/forward-tiny.safetensors"
    cmake --build out >log
    if grep -q 'raftc: compiling' log; then fail "the model is compiled though nothing changed"; fi
    echo '# changed' >>tiny.yaml
    cmake --build out >log
    grep -q 'raftc: compiling' log || fail "the model has changed, and is not compiled again"
}

# Two models in one program, four threads with an instance each; both kinds of library.
case_instances() {
    compile_tiny
    compile_tiny --name other -o other --image 48x32 --set layers.0.depth=1 --set num_classes=7
    cc "${strict[@]}" "$programs/instances.c" tiny.a other.a -I. -pthread -fopenmp -lm -o static
    cc "${strict[@]}" "$programs/instances.c" tiny.so other.so -I. -pthread -lm \
        -Wl,-rpath,"$PWD" -o shared
    ./static
    ./shared
}

case_python() {
    local python trains
    for python in python3 /usr/bin/python3 ""; do
        [ -n "$python" ] || skip "there is no python3 with numpy"
        if "$python" -c 'import numpy' 2>/dev/null; then break; fi
    done
    export PYTHONPATH=$tree/share/raft PYTHONDONTWRITEBYTECODE=1
    if "$python" -c 'import mypy' 2>/dev/null; then
        "$python" -m mypy --strict "$tree/share/raft/raft.py" || fail "its types are wrong"
    fi
    for trains in "" --train; do
        compile_tiny --weights @fill $trains
        "$python" "$programs/user.py" tiny.so tiny.weights "$goldens/tiny.safetensors" \
            "$goldens/forward-tiny.safetensors" $trains
    done
}

# The example for PyTorch: its gradients beside PyTorch's own, and a head that it trains.
case_torch() {
    local python
    for python in python3 /usr/bin/python3 ""; do
        [ -n "$python" ] || skip "there is no python3 with torch and yaml"
        if "$python" -c 'import torch, yaml' 2>/dev/null; then break; fi
    done
    export PYTHONPATH=$tree/share/raft:$tree/share/raft/examples:$root/bench PYTHONDONTWRITEBYTECODE=1
    compile_tiny --train --weights @fill
    "$python" "$programs/user_torch.py" ./tiny.so tiny.weights "$programs/tiny.yaml"
    "$python" "$tree/share/raft/examples/raft_torch.py" ./tiny.so 40 | tee output
    awk '/^step/ { loss = $4 } END { exit !(loss > 0 && loss < 0.2) }' output ||
        fail "the head has not learned"
}

# The manual page is well-formed, and has the commands and options of --help with their arguments, no
# more and no less. It needs no installed tree.
case_manual() {
    local page=$root/runtime/install/raftc.1 section
    PATH=$build:$PATH
    raftc --help | grep -E '^  --?[a-z]' | cut -c 3-33 | tr -d ' ' | sort >options
    awk '/^\.TP/ { getline; if ($2 ~ /^\\-/) print }' "$page" | sed 's/^\.[BIR]* //; s/\\f.//g' |
        tr -d '\\ "' | sort >page_options
    [ "$(wc -l <options)" -gt 20 ] || fail "raftc --help has no options?"
    diff options page_options >&2 || fail "options of raftc --help (<) and of $page (>)"
    raftc --help | sed -n 's/^  raftc \([a-z]*\).*/\1/p' | sort >commands
    sed -n 's/^\.B raftc *\([a-z]*\)$/\1/p' "$page" | sort -u >page_commands
    diff commands page_commands >&2 || fail "commands of raftc --help (<) and of $page (>)"
    for section in NAME SYNOPSIS DESCRIPTION OPTIONS '"EXIT STATUS"' ENVIRONMENT EXAMPLES; do
        grep -qx "\.SH $section" "$page" || fail "the page has no section $section"
    done
    if command -v groff >/dev/null; then
        groff -man -Tutf8 -ww "$page" >rendered 2>warnings || fail "groff refuses the page"
        [ ! -s warnings ] || fail "$(cat warnings)"
        grep -q 'raftc - compile' rendered || fail "the page says nothing"
    else
        echo "installed: manual: there is no groff; the page is not rendered"
    fi
}

# A library says how it was made; made again elsewhere in the same way, it is the same bytes.
case_bytes() {
    local extension line
    mkdir one "two words"
    cp "$programs/tiny.yaml" one
    cp "$programs/tiny.yaml" "two words"
    (cd one && raftc -q tiny.yaml --image 32x32 --weights @fill -o net)
    (cd "two words" && TMPDIR=$PWD raftc -q tiny.yaml --image 32x32 --weights @fill -o net)
    for extension in so a h weights; do
        cmp "one/net.$extension" "two words/net.$extension" || fail "other bytes elsewhere"
    done
    [ "$(ls "two words" | wc -l)" -eq 5 ] || fail "left behind: $(ls "two words")"
    for line in "made by $(raftc --version)" \
        "command: raftc -q tiny.yaml --image 32x32 --weights @fill -o net" \
        "model: $(wc -c <one/tiny.yaml) bytes, FNV-1a hash [0-9a-f]\{16\}"; do
        grep -q "^ \* $line\$" one/net.h || fail "the header does not say: $line"
    done
    raftc inspect one/net.so | grep -qx 'command: raftc -q tiny.yaml .*'
    sed -i 's/num_classes: 10/num_classes: 12/' "two words/tiny.yaml"
    (cd "two words" && raftc -q tiny.yaml --image 32x32 -o net)
    if [ "$(grep ' hash ' one/net.h)" = "$(grep ' hash ' "two words/net.h")" ]; then
        fail "another model has the same hash"
    fi
}

# A model as a picture, whole or not at all.
case_graph() {
    local status=0 forward text
    PATH=/nowhere "$tree/bin/raftc" inspect "$programs/tiny.yaml" --graph no.svg >/dev/null \
        2>message || status=$?
    [ "$status" -eq 5 ] || fail "status $status without Graphviz"
    grep -q "'dot' cannot be run: .* install the package graphviz" message || fail "$(cat message)"
    [ "$(ls)" = message ] || fail "left behind: $(ls)"
    command -v dot >/dev/null || skip "there is no Graphviz"
    raftc inspect "$programs/tiny.yaml" --image 32x32 --graph tiny.svg >/dev/null
    for text in levels.0 levels.1 heads.0 'layernorm over raft, group' 'for b, w 8' \
        'f32\[b, c 3, y 32, x 32\]' '65,536 multiply&#45;adds' features.feature1 forward.logits; do
        grep -q ">$text</text>" tiny.svg || fail "the picture does not say: $text"
    done
    grep -q '</svg>' tiny.svg || fail "the picture is cut"
    raftc "$programs/tiny.yaml" --image 32x32 --emit obj 2>message
    forward=$(sed -n 's/.* kernels: \([0-9]*\) for a forward.*/\1/p' message)
    # The input, a logits and two features are no kernels.
    [ "$(grep -c 'class="node"' tiny.svg)" -eq $((forward + 4)) ] || fail "not $forward kernels"
    raftc inspect "$programs/tiny.yaml" --passes= --graph unfused.svg >/dev/null
    grep -q '>unfold</text>' unfused.svg || fail "no unfold in the graph before the passes"
}

# Images of ten kinds, as IDX files: bright squares, each kind in a place of its own, and noise.
make_idx() { # COUNT
    awk -v count="$1" 'BEGIN {
        srand(1)
        images = sprintf("%08x%08x%08x%08x", 2051, count, 28, 28)
        labels = sprintf("%08x%08x", 2049, count)
        for (i = 0; i < count; i++) {
            kind = int(rand() * 10)
            labels = labels sprintf("%02x", kind)
            for (y = 0; y < 28; y++)
                for (x = 0; x < 28; x++) {
                    inside = int(x / 5) == kind % 5 && int(y / 14) == int(kind / 5)
                    images = images sprintf("%02x", rand() * 100 + 150 * inside)
                }
        }
        print images >"images.hex"
        print labels >"labels.hex"
    }'
    python3 -c 'import sys
for name in ("images", "labels"):
    open(name, "wb").write(bytes.fromhex(open(name + ".hex").read()))'
}

# A library that trains takes the steps of raftc itself.
check_steps() {
    local flags settings=(--set lr=0.002 --set weight_decay=0.05 --set label_smoothing_alpha=0.1)
    PKG_CONFIG_PATH=$(dirname "$(find "$tree" -name raft.pc)")
    export PKG_CONFIG_PATH
    read -ra flags < <(pkg-config --cflags --libs raft)
    compile_tiny "${settings[@]}" "$@" --train --weights @fill
    raftc train -q "$programs/tiny.yaml" --image 32x32 "${settings[@]}" "$@" --weights @fill \
        --data @fill --batch 4 --steps 3 --save trained.safetensors --dump-gradients gradients.safetensors
    cc "${strict[@]}" "$programs/steps.c" tiny.a -I. "${flags[@]}" -o steps
    ./steps tiny.weights trained.safetensors gradients.safetensors
    cc "${strict[@]}" "$programs/given.c" tiny.a -I. "${flags[@]}" -o given
    ./given tiny.weights
}

# The example that trains with a loop of its own.
case_train() {
    check_steps
    check_steps --set optimizer=sgd --set momentum=0.9 --set max_grad_norm=0.5
    local data=/usr/share/datasets/fashion-mnist threads least=0.6
    if [ -f $data/train-images-idx3-ubyte.gz ]; then
        gunzip -c $data/train-images-idx3-ubyte.gz >images
        gunzip -c $data/train-labels-idx1-ubyte.gz >labels
    else
        echo "installed: train: there is no dataset-fashion-mnist; on made-up images"
        make_idx 1500
    fi
    local -a small=(--set 'layers.0.dim=16' --set 'layers.0.depth=1' --set 'layers.0.patch_size=4'
        --set 'layers.0.embedding_kernels=[4, 8]' --set 'layers.1.dim=32' --set 'layers.1.depth=1')
    raftc -q "$tree/share/raft/models/fashion-mnist.yaml" "${small[@]}" --train --name model -o model
    cc "${strict[@]}" "$tree/share/raft/examples/train.c" model.a -I. -fopenmp -lm -o static
    cc "${strict[@]}" "$tree/share/raft/examples/train.c" model.so -I. -lm -Wl,-rpath,"$PWD" -o shared
    for threads in 1 2; do
        OMP_NUM_THREADS=$threads ./static images labels 100 >"$threads.output"
    done
    cat 1.output
    ./shared images labels 100 >shared.output
    cmp 1.output 2.output && cmp 1.output shared.output || fail "another run, other numbers"
    awk -v least=$least '/^accuracy/ { found = $2 } END { exit !(found >= least) }' 1.output ||
        fail "the model has not learned: less than $least"
}

# Memory of a program that runs a published model, against what raftc plans for it, for each way to
# give it weights; which all give the same answer.
case_memory() {
    local size plan weights
    for size in s l; do
        mkdir "$size"
        cd "$size"
        raftc -q "$tree/share/raft/models/raftmlp-$size.yaml" --name model -o model \
            --weights @fill --report memory >report
        plan=$(sed -n '1s/^arena \([0-9]*\) bytes an image,.* prepared \([0-9]*\) bytes.*/\2 \1/p' report)
        [ -n "$plan" ] || fail "no plan: $(head -n 1 report)"
        cc "${strict[@]}" "$programs/memory.c" model.a -I. -fopenmp -lm -o memory
        for weights in pointers model.weights; do
            # shellcheck disable=SC2086 # two numbers
            ./memory $plan "$weights" | tee "$weights.output" || fail "more than the limit"
        done
        raftc -q "$tree/share/raft/models/raftmlp-$size.yaml" --name model -o model \
            --weights @fill --embed
        cc "${strict[@]}" "$programs/memory.c" model.a -I. -fopenmp -lm -o memory
        # shellcheck disable=SC2086 # two numbers
        ./memory $plan embedded | tee embedded.output || fail "more than the limit"
        cmp <(head -n 1 model.weights.output) <(head -n 1 embedded.output) || fail "other logits"
        if cmp -s <(head -n 1 model.weights.output) <(head -n 1 pointers.output); then
            fail "the same logits from other weights"
        fi
        cd ..
    done
}

"case_$name"
