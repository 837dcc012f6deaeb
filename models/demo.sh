#!/usr/bin/env bash
# The tour: sets up, compiles RaftMLP-S into a library, classifies two photographs with it, and eight
# pictures of clothes with a small model that is trained.
# usage: models/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."

started=$SECONDS
tests/setup.sh build
set_up=$((SECONDS - started))

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

milliseconds() { date +%s%3N; }

before=$(milliseconds)
step build/raftc models/raftmlp-s.yaml -o build/raftmlp-s
compiled=$(($(milliseconds) - before))

before=$(milliseconds)
step build/raftc run models/raftmlp-s.yaml --weights @fill models/photos/*.jpg --top 5
ran=$(($(milliseconds) - before))

cat <<END

These weights are made up (--weights @fill), so the classes and their shares mean nothing: the
numbers show that the model runs, not what is on the photographs. The next ones are trained, on
Fashion-MNIST; the pictures are its first test images, named as they are labelled.
END
step build/raftc run models/fashion-mnist.yaml --weights models/fashion-mnist.safetensors \
    --labels models/fashion-mnist.labels --top 2 models/fashion

cat <<END

Built in ${set_up} s:
$(stat -c '  %-24n %9s bytes' build/raftc)
Compiled in ${compiled} ms (models/raftmlp-s.yaml, for this machine):
$(stat -c '  %-24n %9s bytes' build/raftmlp-s.so build/raftmlp-s.a build/raftmlp-s.h)
Classified $(find models/photos -name '*.jpg' | wc -l) photographs in ${ran} ms, compilation included.

Next:
  tests/run.sh                                   run the tests
  build/raftc bench models/raftmlp-s.yaml        time it on this machine
  build/raftc --help                             all commands
  README.md                                      link the library into a C program; how it works
END
