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
# Where nothing can be reserved a page that is missing is an error of that write, not a signal.
shim=$INGOT_BUILD/fault/faulty_calls.so
asan=$(ldd "$(command -v ingot-convert)" | awk '/libasan/ { print $3 ":" }')
for i in 1 2 3 4 5 6 7 8; do
    FAULT_CALL=fallocate FAULT_HOW=EOPNOTSUPP FAULT_AT=1 FAULT_ALL=1 LD_PRELOAD=$asan$shim \
        expect_exit 2 ingot-convert "$MODEL" -o small/out.ingot --method rtn --threads 8
    expect_error space
    [ -z "$(ls -A small)" ] || fail "something was left: $(ls -A small)"
done
# No more is reserved than the file takes: it fits where there is just room for it.
ingot-convert "$MODEL" -o whole.ingot --method rtn 2>err
page=$(getconf PAGESIZE)
pages=$((($(stat -c %s whole.ingot) + page - 1) / page))
mkdir exact
mount -t tmpfs -o size=$((pages * page)) none exact
for threads in 1 8; do
    ingot-convert "$MODEL" -o exact/out.ingot --method rtn --threads $threads --force 2>err ||
        { cat err >&2; fail "an output that just fits is refused"; }
    cmp whole.ingot exact/out.ingot
    rm exact/out.ingot
done
END
    run_with_mounts inside.sh
else
    echo "SKIP: only root can mount a small file system"
fi
