# One allocation of device memory fails, wherever it is: the conversion goes on with less memory and
# comes to a whole file, of the same bytes where calls hold all windows either way.
# INGOT_TEST_DEVICE (default cpu) is the device.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify
need_python json

device=${INGOT_TEST_DEVICE:-cpu}
"$PYTHON" "$INGOT_ROOT/tests/tiny_checkpoint.py" tiny
head -c 60000 "$MODEL/calibration.txt" >text.txt
model=tiny
convert() { # OUT OPTIONS...
    out=$1
    shift
    rm -f ./*.sens # measured anew
    case " $* " in *" --text "*) ;; *) set -- --text text.txt "$@" ;; esac
    expect_exit 0 timeout 300 ingot-convert "$model" -o "$out" --force --threads 1 --json "$@"
    shortages=$(sed -n 's/^ "memory_shortages": \([0-9]*\),$/\1/p' out)
}

# NAME FIRST STEP OPTIONS...: failing allocations FIRST, FIRST * STEP / 10, ... until none fails.
walk() {
    name=$1 n=$2 step=$3
    shift 3
    INGOT_TEST_FAIL_DEVICE_ALLOC=0 convert whole.ingot "$@"
    [ "$shortages" = 0 ] || fail "$name: memory is short without a fault"
    while :; do
        INGOT_TEST_FAIL_DEVICE_ALLOC=$n convert short.ingot "$@"
        [ "$shortages" != 0 ] || break
        is_split=no # a rank that found less memory from the start takes fewer windows a call
        grep -q 'windows a call' err && is_split=yes
        expect_no_files short.ingot.partial
        expect_exit 0 ingot-verify short.ingot --source tiny --threads 1
        [ "$device" != cpu ] || [ $is_split = yes ] ||
            cmp whole.ingot short.ingot || fail "$name: allocation $n: other bytes"
        last=$n
        n=$((n * step / 10 + 1))
    done
    [ "${last:-0}" -ge 15 ] || fail "$name: no allocation beyond ${last:-0} failed"
}

small="--group 32 --seq-len 32 --samples 9"
# shellcheck disable=SC2086
{
    walk one 1 14 --device "$device" $small
    walk folds 2 18 --device "$device" --method awq+gptq --zstd $small
    walk two 3 18 --devices "$device,$device" $small
    walk widths 2 16 --device "$device" --target-bpw 4.48 $small
    walk best 30 40 --device "$device" --effort best $small
    walk saved 60 40 --device "$device" --effort best --resume $small
}

# A text that the model writes: the weights must fit, then fewer sequences are written at once.
# shellcheck disable=SC2086
{
    convert whole.ingot --device "$device" --text @self $small
    n=1 is_fewer=no
    while [ $is_fewer = no ]; do
        [ $n -lt 200 ] || fail "no allocation made fewer sequences be written at once"
        rm -f short.ingot
        INGOT_TEST_FAIL_DEVICE_ALLOC=$n ingot-convert tiny -o short.ingot --threads 1 \
            --device "$device" --text @self $small >out 2>err && grep -q 'sequences at once' err &&
            is_fewer=yes
        [ -e short.ingot ] || grep -q 'out of memory' err || fail "allocation $n: $(cat err)"
        expect_no_files short.ingot.partial
        n=$((n + 2))
    done
    [ "$device" != cpu ] || cmp whole.ingot short.ingot || fail "another text"
}

# Calls of half the windows behind the second block: other bits, the same quality.
model=$MODEL
convert whole.ingot --device "$device" --seq-len 128 --samples 40
expect_exit 0 ingot-verify whole.ingot --source "$MODEL" --text text.txt --windows 20 --seq-len 64 \
    --threads 1 --json
sed -n 's/^ "kld_mean": \(.*\),$/\1/p' out >kld
INGOT_TEST_FAIL_DEVICE_ALLOC=80 convert short.ingot --device "$device" --seq-len 128 --samples 40
[ "$shortages" = 1 ] || fail "one failure counts $shortages times"
expect_exit 0 ingot-verify short.ingot --source "$MODEL" --text text.txt --windows 20 --seq-len 64 \
    --threads 1 --json
sed -n 's/^ "kld_mean": \(.*\),$/\1/p' out >>kld
awk '{ v[NR] = $1 } END { exit !(NR == 2 && v[1] > 0 && v[2] < 1.03 * v[1] && v[1] < 1.03 * v[2]) }' \
    kld || fail "another quality: $(cat kld)"

# What is saved on the way is gone on from like any other state.
INGOT_TEST_FAIL_DEVICE_ALLOC=120 convert resumed.ingot --device "$device" --resume --seq-len 64 \
    --samples 9
[ "$shortages" = 1 ] || fail "--resume: one failure counts $shortages times"
expect_no_files resumed.ingot.resume
