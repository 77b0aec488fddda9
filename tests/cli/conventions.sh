# What every tool does alike (architecture, "Command-line conventions").
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert

count=0
for path in "$INGOT_BUILD"/bin/ingot-*; do
    tool=$(basename "$path")
    count=$((count + 1))

    expect_exit 0 "$tool" --version
    [ "$(cat out)" = "$tool 0.1.0" ] || fail "$tool --version printed: $(cat out)"
    [ ! -s err ] || fail "$tool --version wrote to stderr"

    expect_exit 0 "$tool" --help
    [ ! -s err ] || fail "$tool --help wrote to stderr"
    head -n 1 out | grep -q "^Usage: $tool " || fail "$tool --help has no usage line"
    awk 'length($0) > 100 { exit 1 }' out || fail "$tool --help has a line over 100 columns"
    grep -q '^Examples:' out || fail "$tool --help has no examples"
    grep -q 'interrupted\.$' out || fail "$tool --help does not say what an interrupted run exits with"

    expect_exit 0 "$tool" --man
    for section in NAME SYNOPSIS DESCRIPTION OPTIONS 'EXIT STATUS' EXAMPLES 'SEE ALSO'; do
        grep -q "^\.SH $section\$" out || fail "the man page of $tool has no section $section"
    done
    # Every option of --help is in the man page.
    "$tool" --help | sed -n 's/^  .. *--\([a-z0-9-]*\).*/\1/p; s/^  -., --\([a-z0-9-]*\).*/\1/p' |
        sort -u >options
    [ -s options ] || fail "no options found in $tool --help"
    while read -r option; do
        escaped=$(echo "$option" | sed 's/-/\\\\-/g')
        grep -q -- "\\\\-\\\\-$escaped" out || fail "the man page of $tool lacks --$option"
    done <options

    expect_exit 2 "$tool" --no-such-option
    [ ! -s out ] || fail "$tool wrote a usage error to stdout"
    expect_error "unknown option '--no-such-option'"
    expect_exit 2 "$tool"
    expect_error "is missing"
    expect_exit 2 "$tool" ""
    expect_error "is empty"
    expect_exit 2 "$tool" one two
    [ ! -s out ] || fail "$tool wrote a usage error to stdout"
    expect_exit 2 "$tool" no/such/input -o x --prompt x --text x
    expect_error ":"

    # A result that cannot be written is a failure.
    code=0
    "$tool" --help >/dev/full 2>err || code=$?
    [ "$code" = 2 ] || fail "$tool --help on a full disk: exit code $code"
done

# full COMMAND...: its result cannot be written, and it says so.
full() {
    code=0
    "$@" >/dev/full 2>err || code=$?
    [ "$code" = 2 ] || fail "exit code $code with a full disk under stdout: $*"
    expect_error "out" # standard output
}
ingot-convert "$MODEL" -o model.ingot >out 2>err
cat >zoo.json <<END
{"shelf": "shelf", "models": {"demo": "$MODEL"}, "recipes": {"w8": {"defaults": {"bits": 8}}},
 "products": [{"model": "demo", "recipes": ["w8"]}], "devices": ["cpu"]}
END
ingot-zoo run zoo.json >out 2>err
for json in "" --json; do
    # shellcheck disable=SC2086
    {
        full ingot-inspect model.ingot $json
        full ingot-verify model.ingot $json
        full ingot-convert "$MODEL" --dry-run $json
        full ingot-convert "$MODEL" -o model.ingot --force $json
        full ingot-bench verify --file model.ingot --runs 1 $json
        full ingot-zoo status zoo.json $json
    }
done

# Also where the result was an error whose exit code is another.
head -c 100000 model.ingot >cut.ingot
for tool in ingot-inspect ingot-verify "ingot-run --prompt x"; do
    expect_exit 1 $tool cut.ingot --json
    full $tool cut.ingot --json
done
echo "something else" >foreign.calib
full ingot-calib "$MODEL" --text "$MODEL/calibration.txt" --samples 1 --seq-len 16 -o foreign.calib --reuse --json

# Streams that the caller closed: what is printed goes nowhere, into no file that is being written.
code=0
INGOT_TEST_KILL_WRITE=4 ingot-convert "$MODEL" -o closed.ingot >out <&- 2>&- || code=$?
[ "$code" = 137 ] || fail "exit code $code where the conversion is killed"
if grep -aq "^plan: " closed.ingot.partial; then fail "messages were written into the output"; fi
rm closed.ingot.partial

# A name that is no UTF-8: one object, with a question mark where JSON has no such byte.
odd=$(printf 'odd\377\303\251')
# shows KEY COMMAND...: whatever the exit code, that member has the name so.
shows() {
    key=$1
    shift
    "$@" --json >out 2>err || true
    grep -q "^ \"$key\": \".*odd?$(printf '\303\251')" out || { cat out >&2; fail "no $key: $*"; }
}
shows output ingot-convert "$MODEL" -o "$odd"
shows path ingot-inspect "$odd"
shows file ingot-verify "$odd"
shows error_text ingot-verify "$odd/none"
shows message ingot-convert "$odd/none" -o x
shows message ingot-bench verify --file "$odd/none"
shows message ingot-zoo plan "$odd/none"
shows output ingot-calib "$MODEL" --text "$MODEL/calibration.txt" --samples 1 --seq-len 16 -o "$odd.calib"
cp model.ingot "shelf/$odd"
expect_exit 1 ingot-zoo verify zoo.json --json
grep -q "\"odd?$(printf '\303\251')\"" out || fail "a foreign file is not named: $(cat out)"
echo "$count tools"
