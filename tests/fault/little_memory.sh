# Address space that is too small, at every size: an error or a result, and always an end (OpenBLAS
# asks for ever for a work buffer that it cannot get).
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-run
case $INGOT_BUILD in *asan*) skip "sanitizers take address space of their own" ;; esac

for kilobytes in 40000 60000 80000 100000 120000 160000 250000 320000 380000 430000; do
    code=0
    (ulimit -v "$kilobytes" && exec timeout 60 ingot-convert "$MODEL" -o out.ingot --force \
        --device cpu --text "$MODEL/calibration.txt" --samples 1) >out 2>err </dev/null || code=$?
    case $code in
    0) ;;
    2 | 127) [ ! -e out.ingot ] || fail "$kilobytes KiB: a failed conversion left a file" ;;
    *) fail "$kilobytes KiB: exit code $code: $(tail -n 1 err)" ;;
    esac
    rm -f out.ingot
done
