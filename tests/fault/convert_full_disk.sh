# A full disk at any change of the output: an error that says so, exit 2, no file left.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert

sweep INGOT_TEST_FAIL_WRITE space out.ingot ingot-convert "$MODEL" -o out.ingot --method rtn

# The same on a real file system that is too small, where this user may mount one.
if [ "$(id -u)" = 0 ] && unshare -m true 2>/dev/null; then
    mkdir small
    cat >inside.sh <<'END'
set -eu
. "$INGOT_ROOT/tests/lib.sh"
mount -t tmpfs -o size=1m none small || exit 77
for threads in 1 8; do # alone, and several, which write by mappings there
    expect_exit 2 ingot-convert "$MODEL" -o small/out.ingot --method rtn --threads $threads
    expect_error space
    expect_no_files small/out.ingot
    [ -z "$(ls -A small)" ] || fail "something was left: $(ls -A small)"
done
END
    code=0
    unshare -m sh inside.sh || code=$?
    case $code in
        0) ;;
        77) echo "SKIP: no tmpfs can be mounted here" ;;
        *) exit "$code" ;;
    esac
else
    echo "SKIP: only root can mount a small file system"
fi
