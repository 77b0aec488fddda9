# Whatever allocation fails, ingot-verify says so and exits 2.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify

head -c 12000 "$MODEL/calibration.txt" >text.txt
ingot-convert "$MODEL" -o m.ingot --method rtn
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-verify m.ingot --quick
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-verify m.ingot --source "$MODEL"
sweep INGOT_TEST_FAIL_ALLOC memory r.html \
    ingot-verify m.ingot --source "$MODEL" --text text.txt --seq-len 64 --windows 1 --html r.html

# One allocation of device memory fails: where windows are scored together, fewer of them are, to the
# same figures; elsewhere it says so.
figures() {
    grep -E '"(perplexity|source_perplexity|kld_mean|kld_p99|top1)":' out
}
verify() {
    ingot-verify m.ingot --source "$MODEL" --text text.txt --seq-len 64 --windows 5 --device cpu \
        --threads 1 --json >out 2>err </dev/null
}
verify || fail "$(cat err)"
figures >whole
n=0 fewer=0
while n=$((n + 1)) && [ $n -lt 200 ]; do
    code=0
    INGOT_TEST_FAIL_DEVICE_ALLOC=$n verify || code=$?
    if [ $code = 0 ]; then
        figures | cmp - whole || fail "allocation $n: other figures"
        grep -q 'tokens at once' err || break # none failed any more
        fewer=$((fewer + 1))
    else
        [ $code = 2 ] && grep -q memory err || fail "allocation $n: exit code $code, $(cat err)"
    fi
done
[ $fewer -ge 5 ] && [ $n -lt 200 ] || fail "only $fewer of $n allocations were done without"
