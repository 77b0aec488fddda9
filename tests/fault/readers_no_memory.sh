# Whatever allocation fails, the tools that read say so and exit 2.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify ingot-inspect ingot-run ingot-calib

head -c 12000 "$MODEL/calibration.txt" >text.txt
ingot-convert "$MODEL" -o m.ingot --method rtn
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-inspect "$MODEL"
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-inspect m.ingot --tensors
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-verify m.ingot --source "$MODEL"
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-verify m.ingot --text text.txt --seq-len 64 --windows 1
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-run m.ingot --prompt "The old captain" -n 2
sweep INGOT_TEST_FAIL_ALLOC memory o.calib \
    ingot-calib "$MODEL" --text text.txt -o o.calib --samples 2 --seq-len 64
