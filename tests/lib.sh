# Helpers of the scripts in tests/cli and tests/fault: . "$INGOT_ROOT/tests/lib.sh"
# Scripts run under sh -eu in a fresh folder, with the tools on PATH.

MODEL=$INGOT_ROOT/examples/demo-4m

# fail TEXT: ends the test.
fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# skip TEXT: the test cannot run here.
skip() {
    echo "SKIP: $*"
    exit 77
}

# run_with_mounts SCRIPT: by sh, with mounts of its own; where it ends with 77 nothing could be
# mounted, which is said.
run_with_mounts() {
    code=0
    unshare -m sh "$1" || code=$?
    case $code in
        0) ;;
        77) echo "SKIP: no tmpfs can be mounted here" ;;
        *) exit "$code" ;;
    esac
}

# need TOOL...: skips where a tool is missing.
need() {
    for tool in "$@"; do
        command -v "$tool" >/dev/null 2>&1 || skip "$tool is not there"
    done
}

# need_python MODULE...: sets PYTHON to the first of $INGOT_PYTHON, python3 and Debian's own that
# has all modules; skips where none has.
need_python() {
    for PYTHON in ${INGOT_PYTHON:-} python3 /usr/bin/python3; do
        if command -v "$PYTHON" >/dev/null && "$PYTHON" -c 'if True:
            import importlib.util as u, sys
            sys.exit(any(u.find_spec(m) is None for m in sys.argv[1:]))' "$@"; then
            return 0
        fi
    done
    skip "no Python has $* (INGOT_PYTHON names another one)"
}

# need_cuda: skips where ingot-run finds no CUDA device.
need_cuda() {
    code=0
    ingot-run "$MODEL" --prompt x -n 1 --device cuda --json >out 2>err || code=$?
    if [ "$code" = 2 ] && grep -q E_DEVICE out; then
        skip "no CUDA device: $(head -n 1 err)"
    fi
    [ "$code" = 0 ] || fail "ingot-run on the device: $(cat err)"
}

# is_sanitized: whether the tools take more memory than they need, for AddressSanitizer.
is_sanitized() {
    nm -D "$(command -v ingot-convert)" | grep -q __asan_
}

# expect_exit CODE COMMAND...: runs it with stdout in ./out and stderr in ./err.
expect_exit() {
    wanted=$1
    shift
    code=0
    "$@" >out 2>err </dev/null || code=$?
    if [ "$code" != "$wanted" ]; then
        cat err >&2
        fail "exit code $code, expected $wanted: $*"
    fi
}

# expect_error TEXT: the last command said so, in one line that begins with its name, and no
# sanitizer complained.
expect_error() {
    if grep -qE 'AddressSanitizer|runtime error:|LeakSanitizer' err; then
        cat err >&2
        fail "a sanitizer found something"
    fi
    grep -q '^ingot-[a-z]*: ' err || { cat err >&2; fail "no error message"; }
    grep -qF -- "$1" err || { cat err >&2; fail "the error does not mention: $1"; }
}

# expect_no_files NAME...: none of them exists, nor a partial file of one.
expect_no_files() {
    for file in "$@"; do
        [ ! -e "$file" ] || fail "$file was left"
        [ ! -e "$file.partial" ] || fail "$file.partial was left"
    done
}

# prepare_resumes: checkpoints tiny, other and changed (tiny, to be changed), texts text.txt and
# longer.txt, and convert OPTIONS...: of the checkpoint $from, with the text $with.
prepare_resumes() {
    "$PYTHON" "$INGOT_ROOT/tests/tiny_checkpoint.py" tiny
    "$PYTHON" "$INGOT_ROOT/tests/tiny_checkpoint.py" other 2
    head -c 3000 "$MODEL/calibration.txt" >text.txt
    head -c 3001 "$MODEL/calibration.txt" >longer.txt
    cp -r tiny changed
    from=tiny with=text.txt
    convert() {
        ingot-convert $from --group 32 --text $with --samples 10 --seq-len 32 -o out.ingot "$@" \
            >out 2>err </dev/null
    }
}

# await COMMAND...: until the command succeeds, a minute at most.
await() {
    waited=0
    until "$@"; do
        waited=$((waited + 1))
        [ $waited -lt 600 ] || fail "waited for ever: $*"
        sleep 0.1
    done
}

has_ended() { # PROCESS
    ! kill -0 "$1" 2>/dev/null
}

# await_file FILE PROCESS: until the file is there or the process has ended, a minute at most.
await_file() {
    waited=0
    while [ ! -e "$1" ] && ! has_ended "$2"; do
        sleep 0.01
        waited=$((waited + 1))
        [ $waited -lt 6000 ] || fail "no $1 after a minute"
    done
}

# convert_of PROCESS: the conversion that ingot-zoo or ingot-bench has at work; fails without one.
convert_of() {
    pgrep -P "$1" ingot-convert
}

# sweep VARIABLE TEXT OUTPUT COMMAND...: runs the command with VARIABLE=1, 2, 3, ... (every fault
# at first, then ever fewer) until it succeeds.  Each earlier run must exit 2 with an error that
# mentions TEXT and leave neither OUTPUT nor its partial file ("-": no output).
sweep() {
    variable=$1 text=$2 output=$3
    shift 3
    n=1 failures=0
    while :; do
        code=0
        env "$variable=$n" "$@" >out 2>err </dev/null || code=$?
        [ "$code" != 0 ] || break
        if [ "$code" != 2 ]; then
            cat err >&2
            fail "$variable=$n: exit code $code, expected 2: $*"
        fi
        expect_error "$text"
        [ "$output" = - ] || expect_no_files "$output"
        failures=$((failures + 1))
        n=$((n < 40 ? n + 1 : n + n / 3))
        [ "$n" -lt 100000000 ] || fail "$variable=$n still fails: $*"
    done
    [ "$failures" -gt 0 ] || fail "$variable has no effect on: $*"
    echo "$variable: $failures faults met, the last before number $n: $*"
}
