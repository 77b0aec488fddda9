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
    stop INGOT_TEST_KILL_WRITE 137 $text --effort best --bits 2 --asym --outliers 0.02
    stop INGOT_TEST_KILL_WRITE 137 $text --effort best --samples 3 --zstd --shard-size 20K
    stop INGOT_TEST_FAIL_WRITE 2 $text
    stop INGOT_TEST_FAIL_WRITE 2 --method rtn --zstd
}
[ $resumed -gt 20 ] || fail "only $resumed of $kills interruptions left a state"

# Folds, tuning and distillation, stopped once, late.
# shellcheck disable=SC2086
for options in "--effort best --method awq+gptq --samples 4" "--effort best --bits 2"; do
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
keys = ("tensors", "tuning", "distillation", "fallbacks", "root")
sys.exit(any(a.get(key) != b.get(key) for key in keys))
END
    same "$options"
done

# Matrices that wait for distillation: without their file, or where it is damaged, a state is of no
# use; a full disk leaves all that can be gone on from, and a run without --resume removes it.
best="$text --effort best --bits 2"
interrupt() {
    rm -f out*.ingot*
    code=0
    # shellcheck disable=SC2086
    INGOT_TEST_FAIL_WRITE=70 convert -o out.ingot --resume $best || code=$?
    [ $code = 2 ] && [ -e out.ingot.resume ] && [ -e out.ingot.waiting.partial ] ||
        fail "a full disk: exit code $code, left $(ls)"
}
# shellcheck disable=SC2086
{
    rm -f whole*.ingot
    convert -o whole.ingot $best
    interrupt
    rm out.ingot.waiting.partial
    convert -o out.ingot --resume $best
    grep -q 'its partial output is gone: removed' err || fail "it is not said that a file is gone"
    same "$best"
    interrupt
    "$PYTHON" - <<'END'
data = bytearray(open("out.ingot.waiting.partial", "rb").read())
data[len(data) // 4] ^= 1
open("out.ingot.waiting.partial", "wb").write(data)
END
    cp out.ingot.waiting.partial damaged
    expect_exit 2 ingot-convert tiny --group 32 -o out.ingot --resume $best
    expect_error "the partial output does not hold what was written"
    cmp damaged out.ingot.waiting.partial || fail "a refused state: what waited was touched"
    convert -o out.ingot $best
    same "$best"
}

# Killed at random moments, again and again, until one run is fast enough.
random() { "$PYTHON" -c 'import random; print(random.uniform(0.05, 1.5))'; }
moments=0
# shellcheck disable=SC2086
for round in 1 2 3 4; do
    rm -f out*.ingot*
    for again in 1 2 3; do
        ingot-convert tiny --group 32 -o out.ingot --resume $best >out 2>err </dev/null &
        sleep "$(random)"
        ! kill -KILL $! 2>kill || moments=$((moments + 1))
        wait $! && break
    done
    convert -o out.ingot --resume $best || { cat err >&2; fail "round $round"; }
    same "$best"
done
kills=$((kills + moments))
echo "stopped $kills times, $resumed times with a state"
