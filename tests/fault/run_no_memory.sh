# Whatever allocation fails, ingot-run says so and exits 2.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-run

ingot-convert "$MODEL" -o m.ingot --method rtn
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-run "$MODEL" --prompt "The old captain" -n 2
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-run m.ingot --prompt "The old captain" -n 2
