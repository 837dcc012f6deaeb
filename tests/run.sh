#!/usr/bin/env bash
# Sets up, then runs the tests: in the build that people use, and under AddressSanitizer and UBSan.
# usage: tests/run.sh [--long [SECONDS]]
#
# Each test has one label (see CMakeLists.txt): `quick` ones run in both builds, `slow` ones in the
# first alone, and `long` ones only when asked for; with --long, the slow ones run under the
# sanitizers too, and each kind of hostile file is tried for so many seconds (default 60). The last
# line is `N passed, N failed`, with `, N skipped` where a test was.
set -euo pipefail
cd "$(dirname "$0")/.."

first=(-LE long)
sanitized=(-L quick)
case "$#:${1:-}" in
0:) ;;
1:--long | 2:--long)
    first=()
    sanitized=(-LE long)
    export FUZZ_SECONDS=${2:-60}
    ;;
*)
    echo "usage: tests/run.sh [--long [SECONDS]]" >&2
    exit 2
    ;;
esac

export OMP_WAIT_POLICY=passive # two tests share the processors: threads that wait must not spin

passed=0 failed=0 skipped=0

run_tests() { # FOLDER CTEST_OPTION...
    local report=$PWD/$1/tests.xml good=true all ran missed
    rm -f "$report"
    ctest --test-dir "$1" --output-on-failure --no-tests=error --parallel "$(nproc)" \
        --output-junit "$report" "${@:2}" || good=false
    touch "$report"
    all=$(grep -c '^[[:space:]]*<testcase ' "$report" || true)
    ran=$(grep -c '^[[:space:]]*<testcase .*status="run"' "$report" || true)
    missed=$(grep -c '^[[:space:]]*<skipped message="SKIP_' "$report" || true)
    # What neither ran to a good end nor asked to be skipped has failed: a missing program, too.
    if [ "$good" = false ] && [ "$all" -eq $((ran + missed)) ]; then all=$((all + 1)); fi
    passed=$((passed + ran))
    skipped=$((skipped + missed))
    failed=$((failed + all - ran - missed))
}

tests/setup.sh build
run_tests build "${first[@]}"
tests/setup.sh build-asan -DRAFTC_SANITIZE=ON
run_tests build-asan "${sanitized[@]}"

summary="$passed passed, $failed failed"
[ "$skipped" -eq 0 ] || summary="$summary, $skipped skipped"
echo "$summary"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
