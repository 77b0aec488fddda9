# Several devices: each takes a part of the windows and of the linears; what comes out is what one
# device makes, but for the order of sums, and the same every time.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-inspect ingot-verify

head -c 60000 "$MODEL/calibration.txt" >text.txt
convert() { # OUT OPTIONS...
    out=$1
    shift
    expect_exit 0 timeout 300 ingot-convert "$MODEL" -o "$out.ingot" --text text.txt --seq-len 64 \
        --threads 1 "$@"
}
same() { cmp "$1.ingot" "$2.ingot" || fail "$1 and $2 differ"; }

convert one --device cpu --samples 9
convert list --devices cpu --samples 9
same one list
convert two --devices cpu,cpu --samples 9
convert again --devices cpu,cpu --samples 9
same two again
ingot-inspect two.ingot | grep -q ' x2' || fail "the file does not say how many devices"

# Of the first block, whose inputs are the same, errors agree within rounding.
code=0
ingot-inspect one.ingot --compare two.ingot >differences || code=$?
grep 'layers\.0\.' differences | tr -d '(),' | awk '
    function check(a, b) { if (a - b > 0.003 || b - a > 0.003) bad = 1 }
    { for (i = 1; i < NF; i++) if ($i == "error" || $i == "output") { check($(i+1), $(i+3)); n++ } }
    END { exit bad || n < 4 }' || { cat differences; fail "two devices do otherwise"; }
expect_exit 0 ingot-verify two.ingot --source "$MODEL" --text text.txt --seq-len 64 --windows 20 \
    --threads 1 --json
grep -o '"kld_mean": [0-9.e-]*' out >kld-two
expect_exit 0 ingot-verify one.ingot --source "$MODEL" --text text.txt --seq-len 64 --windows 20 \
    --threads 1 --json
grep -o '"kld_mean": [0-9.e-]*' out | cat - kld-two | awk '
    { v[NR] = $2 } END { exit !(NR == 2 && v[1] > 0 && v[2] < 1.1 * v[1] && v[1] < 1.1 * v[2]) }' ||
    fail "another quality: $(cat out kld-two)"

# More devices than windows; nothing to share out.
convert many --devices cpu,cpu,cpu --samples 2
expect_exit 0 ingot-verify many.ingot --source "$MODEL"
expect_exit 0 ingot-convert "$MODEL" -o rtn.ingot --devices cpu,cpu
expect_exit 0 ingot-convert "$MODEL" -o rtn1.ingot --device cpu
# The same tensors; META says how many devices were given.
for name in rtn rtn1; do
    ingot-inspect $name.ingot --json | grep '"content_id"' >$name.id
done
cmp rtn.id rtn1.id || fail "plain rounding on two devices gives other tensors"

# Whatever fails on one of them ends all of them.
for n in 150 300 450 560 700; do
    code=0
    INGOT_TEST_FAIL_ALLOC=$n timeout 300 ingot-convert "$MODEL" -o failed.ingot --text text.txt \
        --seq-len 64 --samples 4 --threads 1 --devices cpu,cpu >out 2>err || code=$?
    case $code in
        0) rm failed.ingot && break ;;
        2) expect_error memory && expect_no_files failed.ingot ;;
        *) fail "allocation $n: exit code $code: $(cat err)" ;;
    esac
done
ingot-convert "$MODEL" -o stopped.ingot --text "$MODEL/calibration.txt" --devices cpu,cpu >out 2>err &
process=$!
while [ ! -e stopped.ingot.partial ] && kill -0 $process 2>/dev/null; do sleep 0.05; done
sleep 0.5
kill -INT $process || fail "it ended before the signal"
code=0
wait $process || code=$?
[ "$code" = 2 ] || fail "SIGINT: exit code $code"
expect_error "interrupted by SIGINT"
expect_no_files stopped.ingot

expect_exit 2 ingot-convert "$MODEL" -o wrong.ingot --device cpu --devices cpu
expect_error "exclude each other"
for wrong in "--devices cpu,banana" "--devices cpu,cuda:999" "--device cpu --devices cpu" \
    "--devices cpu," "--devices cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu"; do
    # shellcheck disable=SC2086
    expect_exit 2 ingot-convert "$MODEL" -o wrong.ingot --threads 1 $wrong
    expect_error ":"
done

need_python json
"$PYTHON" "$INGOT_ROOT/tests/tiny_checkpoint.py" tiny
# Folds are the same on all devices, also where there are too few windows to hold any out.
for samples in 2 5 9; do
    for method in awq awq+gptq; do
        expect_exit 0 timeout 300 ingot-convert tiny -o folds.ingot --text text.txt --group 32 --seq-len 32 \
            --samples $samples --threads 1 --method $method --devices cpu,cpu,cpu --force
        expect_exit 0 ingot-verify folds.ingot --source tiny --threads 1
    done
done
tiny() { # OUT OPTIONS...
    out=$1
    shift
    expect_exit 0 timeout 300 ingot-convert tiny -o "$out.ingot" --text text.txt --group 32 \
        --seq-len 32 --samples 12 --threads 1 --json "$@"
    grep '"bits"' out >"$out.bits"
    expect_exit 0 ingot-verify "$out.ingot" --source tiny --threads 1
}
# Bits by sensitivity, which the first device measures: the same choice.
tiny target1 --device cpu --target-bpw 4.4667
tiny target2 --devices cpu,cpu --target-bpw 4.4667
cmp target1.bits target2.bits || fail "other widths on two devices"
# Tuning is the first device's.
tiny best1 --device cpu --effort best
tiny best2 --devices cpu,cpu --effort best
same best1 best2
