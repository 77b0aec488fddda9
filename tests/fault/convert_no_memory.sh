# Whatever allocation fails, ingot-convert says so, exits 2 and leaves no file.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert

head -c 12000 "$MODEL/calibration.txt" >text.txt
sweep INGOT_TEST_FAIL_ALLOC memory out.ingot \
    ingot-convert "$MODEL" -o out.ingot --method rtn --threads 2
rm out.ingot
sweep INGOT_TEST_FAIL_ALLOC memory out.ingot \
    ingot-convert "$MODEL" -o out.ingot --text text.txt --samples 2 --seq-len 64 --threads 2
