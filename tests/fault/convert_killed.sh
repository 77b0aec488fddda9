# SIGKILL at any change of the output leaves at most the partial file; the next run says that it
# found one and writes the same bytes as a run that was never disturbed.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert

# killed OUT OPTION...
killed() {
    out=$1
    shift
    n=1 kills=0
    while :; do
        code=0
        INGOT_TEST_KILL_WRITE=$n ingot-convert "$MODEL" -o "$out" --method rtn "$@" \
            >out 2>err </dev/null || code=$?
        [ "$code" != 0 ] || break
        [ "$code" = 137 ] || fail "exit code $code, expected 137 (SIGKILL) at change $n"
        [ ! -e "$out" ] || fail "a killed run left $out"
        [ -e "$out.partial" ] || fail "change $n came before the partial file"
        kills=$((kills + 1))
        if [ $((kills % 5)) = 1 ]; then
            ingot-convert "$MODEL" -o "$out" --method rtn "$@" >out 2>err </dev/null
            grep -q 'a partial file of an interrupted run was found and replaced' err ||
                fail "the run after a killed one does not say so"
            cmp whole.ingot "$out"
            [ ! -e "$out.partial" ] || fail "the partial file is still there"
            rm "$out"
        fi
        n=$((n < 20 ? n + 1 : n + n / 3))
    done
    [ "$kills" -gt 3 ] || fail "only $kills changes of the output were met"
    cmp whole.ingot "$out"
    echo "killed $kills times${*:+ ($*)}"
}

ingot-convert "$MODEL" -o whole.ingot --method rtn 2>err
killed out.ingot
if memory=$(mktemp -d /dev/shm/ingot-killed-XXXXXX); then # written by mappings
    trap 'rm -rf "$memory"' EXIT
    killed "$memory/out.ingot" --threads 8
else
    echo "SKIP: no /dev/shm"
fi
