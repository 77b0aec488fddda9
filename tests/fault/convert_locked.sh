# Two conversions to one output: the second is refused and does not disturb the first.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert flock

ingot-convert "$MODEL" -o whole.ingot --method rtn 2>err
# flock(1) holds the partial file as a running conversion would.
: >out.ingot.partial
flock out.ingot.partial sleep 60 &
holder=$!
sleep 0.3
expect_exit 2 ingot-convert "$MODEL" -o out.ingot --method rtn
expect_error "another process is writing this output"
[ -e out.ingot.partial ] || fail "the partial file of the other process was removed"
kill $holder
wait $holder 2>/dev/null || true
expect_exit 2 ingot-convert "$MODEL" -o whole.ingot --method rtn
expect_error exists
expect_exit 0 ingot-convert "$MODEL" -o whole.ingot --method rtn --force
