#!/bin/sh
# Runs every test against one build: sh tests/run.sh BUILD [PATTERN]
#
#   unit tests      BUILD/tests/*          from the root of the tree
#   command lines   tests/cli/*.sh         in a fresh folder, compared with the files beside it
#   faults          tests/fault/*.sh       in a fresh folder
#   fuzz corpora    BUILD/fuzz/*           over tests/fuzz/corpus/READER
#   layer rule      tests/layers.sh
#
# One line per test program or script; logs stay in BUILD/test-logs.  With a PATTERN (extended
# regular expression) only tests whose name matches run.  tests/README.md says how to write one.
# INGOT_TEST_UPDATE=1 rewrites the expected output of command-line tests instead of comparing.
#
# Where there is a CUDA device its tests come last and one at a time: side by side on one card they
# can fail inside cuBLAS (decision 0032).  The others are shown none, so that they do everywhere the
# same.  sh tests/run.sh --device-tests prints the unit tests of a device.
set -u

# The exit code of a test that cannot run here.
SKIP=77

# The sources of unit tests that open a CUDA device: by their names, which headers that open one for
# them do not hide, or by what they say.
device_tests() {
    {
        ls tests/unit/test_cuda_*.c
        grep -lE '"cuda"|(backend_devices|suite_cuda)\.h' tests/unit/test_*.c
    } | sort -u
}
if [ "${1:-}" = --device-tests ]; then
    device_tests
    exit
fi

if [ "${1:-}" != --one ]; then
    [ $# -ge 1 ] && [ -d "$1" ] || { echo "usage: sh tests/run.sh BUILD [PATTERN]" >&2; exit 2; }
    root=$(cd "$(dirname "$0")/.." && pwd)
    build=$(cd "$1" && pwd)
    pattern=${2:-.}
    cd "$root" || exit 2
    logs=$build/test-logs
    rm -rf "$logs"
    mkdir -p "$logs"

    export INGOT_ROOT="$root" INGOT_BUILD="$build" INGOT_LOGS="$logs"
    export INGOT_SHARED="${INGOT_SHARED:-$root/../shared}"
    export PATH="$build/bin:$PATH" LC_ALL=C
    # Sanitized builds: a huge allocation is to return NULL, as it does elsewhere.
    export ASAN_OPTIONS="allocator_may_return_null=1:detect_leaks=1:${ASAN_OPTIONS:-}"
    export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
    # What the caller says of OpenBLAS is not what the tools choose: sums would depend on how many
    # rows are multiplied at once.
    unset COLUMNS POSIXLY_CORRECT OPENBLAS_CORETYPE OPENBLAS_L2_SIZE INGOT_TEST_FAIL_ALLOC \
        INGOT_TEST_FAIL_WRITE INGOT_TEST_KILL_WRITE INGOT_TEST_FAIL_DEVICE_ALLOC

    # Scripts first: they take longest.  Only what has a source is run: a build folder may hold
    # programs of tests that are gone.
    {
        for file in tests/fault/*.sh; do echo "fault/$(basename "$file" .sh)"; done
        for file in tests/cli/*.sh; do echo "cli/$(basename "$file" .sh)"; done
        for file in tests/unit/test_*.c; do echo "unit/$(basename "$file" .c)"; done
        for file in tests/unit/test_*.cu; do # where there is CUDA to build them with
            [ ! -x "$build/tests/$(basename "$file" .cu)" ] || echo "unit/$(basename "$file" .cu)"
        done
        for file in tests/fuzz/fuzz_*.c; do echo "fuzz/$(basename "$file" .c)"; done
        echo layers
    } | grep -v '\*' | grep -E -- "$pattern" >"$logs/list"

    jobs=${INGOT_TEST_JOBS:-$(nproc)}
    if [ -n "$(ls -d /dev/nvidia[0-9]* /dev/dxg 2>/dev/null)" ]; then # dxg: that of WSL
        {
            device_tests | sed 's|^tests/\(.*\)\.c$|\1|'
            ls tests/cli/*_cuda.sh | sed 's|^tests/\(.*\)\.sh$|\1|'
        } >"$logs/alone"
        grep -vxFf "$logs/alone" "$logs/list" |
            CUDA_VISIBLE_DEVICES='' xargs -r -P "$jobs" -n 1 sh tests/run.sh --one
        grep -xFf "$logs/alone" "$logs/list" | xargs -r -n 1 sh tests/run.sh --one
    else
        xargs -r -P "$jobs" -n 1 sh tests/run.sh --one <"$logs/list"
    fi

    passed=0 failed=0 skipped=0
    while read -r name; do
        result=none
        file=$logs/$(echo "$name" | tr / -).result
        [ -f "$file" ] && result=$(cat "$file")
        case $result in
            PASS) passed=$((passed + 1)) ;;
            SKIP) skipped=$((skipped + 1)) ;;
            *)
                failed=$((failed + 1))
                [ "$result" = FAIL ] || echo "FAIL  $name  (left no result)"
                ;;
        esac
    done <"$logs/list"
    [ "$failed" = 0 ] || echo "logs of failed tests: $logs"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ] && [ "$passed" != 0 ]
    exit
fi

# ---- one test: sh tests/run.sh --one NAME ---------------------------------------------------

name=$2
log=$INGOT_LOGS/$(echo "$name" | tr / -).log
result_file=${log%.log}.result
base=${name#*/}
limit_seconds=${INGOT_TEST_LIMIT_SECONDS:-900}
work=$(mktemp -d "${TMPDIR:-/tmp}/ingot-test-XXXXXX") || exit 0
trap 'rm -rf "$work"' EXIT

# limited COMMAND...: no input, and an end.
limited() {
    timeout --kill-after=10 "$limit_seconds" "$@" </dev/null
}

# Compares what a command-line test printed with NAME.stdout or NAME.stderr, if that file exists.
compare() {
    expected=$INGOT_ROOT/tests/$name.$1
    [ -f "$expected" ] || return 0
    if [ "${INGOT_TEST_UPDATE:-0}" = 1 ]; then
        cp "$work/$1" "$expected"
    elif ! diff -u "$expected" "$work/$1" >"$work/diff"; then
        echo "--- $1 is not what tests/$name.$1 says:"
        cat "$work/diff"
        return 1
    fi
}

run_script() {
    mkdir "$work/here"
    (cd "$work/here" && limited sh -eu "$INGOT_ROOT/tests/$name.sh") >"$work/stdout" 2>"$work/stderr"
    code=$?
    cat "$work/stdout"
    sed 's/^/stderr: /' "$work/stderr"
    expected_code=0
    [ "$code" = $SKIP ] && return $SKIP
    if [ -f "$INGOT_ROOT/tests/$name.exit" ]; then
        expected_code=$(cat "$INGOT_ROOT/tests/$name.exit")
    fi
    verdict=0
    if [ "$code" != "$expected_code" ]; then
        echo "--- exit code $code, expected $expected_code"
        verdict=1
    fi
    compare stdout || verdict=1
    compare stderr || verdict=1
    return $verdict
}

start=$(date +%s%N)
case $name in
    unit/*) limited "$INGOT_BUILD/tests/$base" >"$log" 2>&1 ;;
    fuzz/*) limited "$INGOT_BUILD/fuzz/$base" "tests/fuzz/corpus/${base#fuzz_}" >"$log" 2>&1 ;;
    layers) limited sh tests/layers.sh "$INGOT_BUILD" >"$log" 2>&1 ;;
    *) run_script >"$log" 2>&1 ;;
esac
code=$?
end=$(date +%s%N)
seconds=$(((end - start) / 1000000000)).$(((end - start) / 100000000 % 10))

case $code in
    0) result=PASS ;;
    "$SKIP") result=SKIP ;;
    *) result=FAIL ;;
esac
echo $result >"$result_file"
# One write per test, so that lines of parallel tests do not mix.
{
    printf '%-5s %-40s %6ss\n' $result "$name" "$seconds"
    case $result in
        # Tests that passed may have left something out: that is said aloud too.
        PASS | SKIP) grep -aE '(^|[. ])SKIP' "$log" | sort -u | head -5 | sed 's/^/        /' ;;
        FAIL)
            [ $code = 124 ] && echo "        ended after $limit_seconds s"
            tail -n 40 "$log" | sed 's/^/        /'
            ;;
    esac
} >"$work/report"
cat "$work/report"
exit 0
