# --resume: killed at any change of the output or the state, or stopped by a full disk, a conversion
# goes on at its last finished block and the bytes are those of one that was never stopped.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert
need_python json

"$PYTHON" "$INGOT_ROOT/tests/tiny_checkpoint.py" tiny
head -c 3000 "$MODEL/calibration.txt" >text.txt
text="--text text.txt --samples 10 --seq-len 32"

# convert OPTIONS...: without input, errors in ./err.
convert() { ingot-convert tiny --group 32 "$@" >out 2>err </dev/null; }

# same: out* holds the bytes of whole*, and nothing else was left.
same() {
    for file in whole*.ingot; do
        cmp "$file" "out${file#whole}" || fail "the bytes differ: $*"
    done
    left=$(ls | grep -c '^out.*\(partial\|resume\)' || true)
    [ "$left" = 0 ] || fail "something was left of the interrupted run: $(ls)"
}

# stop VARIABLE CODE OPTIONS...: stops a run at ever later changes, each time goes on until the end.
kills=0 resumed=0
stop() {
    variable=$1 code=$2
    shift 2
    rm -f whole*.ingot out*.ingot
    convert -o whole.ingot "$@" || { cat err >&2; fail "failed: $*"; }
    n=3 stopped=1
    while [ $stopped = 1 ]; do
        stopped=0
        rm -f out*.ingot
        for again in 1 2 3; do # what goes on may be stopped as well
            result=0
            env "$variable=$((n * again))" sh -c \
                'exec ingot-convert tiny --group 32 "$@" >out 2>err </dev/null' - \
                -o out.ingot --resume "$@" 2>kill || result=$?
            [ $result != 0 ] || break
            [ $result = "$code" ] || { cat err >&2; fail "$variable=$n: exit $result: $*"; }
            stopped=1
            kills=$((kills + 1))
            [ ! -e out.ingot.resume ] || resumed=$((resumed + 1))
        done
        [ $result = 0 ] || convert -o out.ingot --resume "$@" || { cat err >&2; fail "$*"; }
        same "$@"
        n=$((n * 2 + 1))
    done
}

# shellcheck disable=SC2086
{
    stop INGOT_TEST_KILL_WRITE 137 $text
    stop INGOT_TEST_KILL_WRITE 137 $text --method awq --zstd --samples 3
    stop INGOT_TEST_KILL_WRITE 137 $text --shard-size 20K --asym --outliers 0.02
    stop INGOT_TEST_KILL_WRITE 137 $text --devices cpu,cpu --target-bpw 5
    stop INGOT_TEST_KILL_WRITE 137 --method rtn --zstd --shard-size 20K
    stop INGOT_TEST_KILL_WRITE 137 --effort fast --embed-bits 4
    stop INGOT_TEST_FAIL_WRITE 2 $text
    stop INGOT_TEST_FAIL_WRITE 2 --method rtn --zstd
}
[ $resumed -gt 20 ] || fail "only $resumed of $kills interruptions left a state"

# Folds and tuning, stopped once, late.
# shellcheck disable=SC2086
for options in "--effort best --method awq+gptq --samples 4"; do
    rm -f whole*.ingot out*.ingot
    convert -o whole.ingot $text $options
    code=0
    INGOT_TEST_KILL_WRITE=70 ingot-convert tiny --group 32 -o out.ingot --resume $text $options \
        >out 2>err </dev/null || code=$?
    [ -e out.ingot.resume ] || fail "no state after $options (exit $code)"
    convert -o out.ingot --resume --json $text $options || { cat err >&2; fail "$options"; }
    grep -q 'finished before' err || fail "nothing was taken over: $options"
    # What is reported of finished blocks is what they were.
    cp out resumed.json
    convert -o whole.ingot --force --json $text $options
    "$PYTHON" - out resumed.json <<'END' || fail "the report differs: $options"
import json, sys
a, b = (json.load(open(name)) for name in sys.argv[1:])
sys.exit(any(a[key] != b[key] for key in ("tensors", "tuning", "fallbacks", "root")))
END
    same "$options"
done
# What waits in memory for distillation starts over, which is said, and leaves nothing.
# shellcheck disable=SC2086
{
    rm -f whole*.ingot out*.ingot
    convert -o whole.ingot $text --effort best
    INGOT_TEST_FAIL_WRITE=30 ingot-convert tiny --group 32 -o out.ingot --resume $text --effort best \
        >out 2>err </dev/null && fail "the disk was not full"
    grep -q 'an interruption will start over' err || fail "it is not said that nothing is saved"
    [ ! -e out.ingot.partial ] && [ ! -e out.ingot.resume ] || fail "something was left: $(ls)"
    convert -o out.ingot --resume $text --effort best
    same --effort best
}
echo "stopped $kills times, $resumed times with a state"
