# Whatever allocation fails, ingot-verify says so and exits 2.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify

head -c 12000 "$MODEL/calibration.txt" >text.txt
ingot-convert "$MODEL" -o m.ingot --method rtn
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-verify m.ingot --quick
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-verify m.ingot --source "$MODEL"
sweep INGOT_TEST_FAIL_ALLOC memory r.html \
    ingot-verify m.ingot --source "$MODEL" --text text.txt --seq-len 64 --windows 1 --html r.html
