# Conversions on a CUDA device that are stopped: a signal leaves nothing, and one that is killed goes
# on with --resume to the bytes of one that was not.  Skipped without a device.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-run
need_cuda
text="--text $MODEL/calibration.txt --device cuda --seq-len 128"

# shellcheck disable=SC2086
for signal in INT TERM; do
    ingot-convert "$MODEL" -o out.ingot $text --samples 400 --effort best >out 2>err </dev/null &
    process=$!
    await_file out.ingot.partial $process
    sleep 0.2
    kill -$signal $process || fail "the conversion ended before the signal"
    code=0
    wait $process || code=$?
    [ "$code" = 2 ] || { cat err >&2; fail "SIG$signal: exit code $code, expected 2"; }
    expect_error "interrupted by SIG$signal"
    [ "$(echo out*)" = out ] || fail "SIG$signal left $(echo out*)"
done

# shellcheck disable=SC2086
for effort in default best; do
    options="$text --samples 12 --effort $effort"
    expect_exit 0 ingot-convert "$MODEL" -o whole.ingot $options
    kills=0
    for n in 5 30 60 110; do
        code=0
        env INGOT_TEST_KILL_WRITE=$n sh -c 'exec "$@" >out 2>err </dev/null' - \
            ingot-convert "$MODEL" -o stopped.ingot --resume $options 2>killed || code=$?
        [ $code != 0 ] || break
        [ $code = 137 ] || { cat err >&2; fail "$effort, number $n: exit code $code"; }
        [ ! -e stopped.ingot ] || fail "$effort, number $n: a killed conversion left its output"
        kills=$((kills + 1))
    done
    [ $code = 0 ] || expect_exit 0 ingot-convert "$MODEL" -o stopped.ingot --resume $options
    cmp whole.ingot stopped.ingot || fail "$effort: the bytes differ after $kills interruptions"
    [ "$(echo stopped*)" = stopped.ingot ] || fail "$effort: left $(echo stopped*)"
    rm whole.ingot stopped.ingot
    [ $kills -ge 2 ] || fail "$effort: killed $kills times alone"
    echo "$effort: killed $kills times, then the same bytes"
done
