# Whatever allocation fails, ingot-calib says so and exits 2.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-calib ingot-verify

head -c 12000 "$MODEL/calibration.txt" >text.txt
sweep INGOT_TEST_FAIL_ALLOC memory o.calib \
    ingot-calib "$MODEL" --text text.txt -o o.calib --samples 2 --seq-len 64

# One allocation of device memory fails: calls of fewer windows do, whose sums are rounded otherwise.
calibrate() {
    ingot-calib "$MODEL" --text text.txt -o d.calib --force --samples 4 --seq-len 64 --device cpu \
        --threads 1 >out 2>err </dev/null
}
calibrate || fail "$(cat err)"
n=0 fewer=0
while n=$((n + 1)) && [ $n -lt 200 ]; do
    code=0
    INGOT_TEST_FAIL_DEVICE_ALLOC=$n calibrate || code=$?
    if [ $code = 0 ]; then
        grep -q 'windows at once instead of 4' err || break # none failed any more
        expect_exit 0 ingot-verify d.calib --source "$MODEL"
        fewer=$((fewer + 1))
    else
        [ $code = 2 ] && grep -q memory err || fail "allocation $n: exit code $code, $(cat err)"
        expect_no_files d.calib.partial
    fi
done
[ $fewer -ge 3 ] && [ $n -lt 200 ] || fail "only $fewer of $n allocations were done without"
