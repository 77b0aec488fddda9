# SIGINT and SIGTERM in the middle of a conversion: one error, exit 2, no file, soon.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert

for signal in INT TERM; do
    ingot-convert "$MODEL" -o out.ingot --text "$MODEL/calibration.txt" >out 2>err </dev/null &
    process=$!
    await_file out.ingot.partial $process
    sleep 0.2
    start=$(date +%s)
    kill -$signal $process || fail "the conversion ended before the signal"
    code=0
    wait $process || code=$?
    seconds=$(($(date +%s) - start))
    [ "$code" = 2 ] || { cat err >&2; fail "SIG$signal: exit code $code, expected 2"; }
    expect_error "interrupted by SIG$signal"
    expect_no_files out.ingot
    [ "$seconds" -le 20 ] || fail "SIG$signal: took $seconds s to end"
    echo "SIG$signal: ended after $seconds s"
done
