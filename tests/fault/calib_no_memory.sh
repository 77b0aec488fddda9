# Whatever allocation fails, ingot-calib says so and exits 2.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-calib

head -c 12000 "$MODEL/calibration.txt" >text.txt
sweep INGOT_TEST_FAIL_ALLOC memory o.calib \
    ingot-calib "$MODEL" --text text.txt -o o.calib --samples 2 --seq-len 64
