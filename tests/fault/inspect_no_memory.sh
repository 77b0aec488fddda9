# Whatever allocation fails, ingot-inspect says so and exits 2.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-inspect

ingot-convert "$MODEL" -o m.ingot --method rtn
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-inspect "$MODEL"
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-inspect m.ingot --tensors
sweep INGOT_TEST_FAIL_ALLOC memory - ingot-inspect m.ingot --compare m.ingot
