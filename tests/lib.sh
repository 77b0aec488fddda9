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

# need TOOL...: skips where a tool is missing.
need() {
    for tool in "$@"; do
        command -v "$tool" >/dev/null 2>&1 || skip "$tool is not there"
    done
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
