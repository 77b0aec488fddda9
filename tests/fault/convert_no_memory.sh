# Whatever allocation fails, ingot-convert says so, exits 2 and leaves no file.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert

head -c 12000 "$MODEL/calibration.txt" >text.txt
sweep INGOT_TEST_FAIL_ALLOC memory out.ingot \
    ingot-convert "$MODEL" -o out.ingot --method rtn --threads 2
rm out.ingot
# Plain rounding has no samples that could be fewer.
told=
for n in $(seq 100 25 250); do
    expect_exit 2 env INGOT_TEST_FAIL_ALLOC=$n ingot-convert "$MODEL" -o out.ingot --method rtn --threads 2
    ! grep -q -e samples -e seq-len err || fail "$(cat err)"
    ! grep -q 'out of memory (free some memory)' err || told=yes
done
[ -n "$told" ] || fail "no remedy: $(cat err)"
sweep INGOT_TEST_FAIL_ALLOC memory out.ingot \
    ingot-convert "$MODEL" -o out.ingot --text text.txt --samples 2 --seq-len 64 --threads 2
