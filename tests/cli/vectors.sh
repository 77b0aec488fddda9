# The conformance vectors are what their generator, which knows the specification alone, writes;
# the Python reader gives their values and first errors; ingot-verify the same errors.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-verify
need_python numpy xxhash zstandard
export PYTHONDONTWRITEBYTECODE=1
VECTORS=$INGOT_ROOT/spec/vectors

"$PYTHON" "$INGOT_ROOT/tests/vectors/generate.py" --check "$VECTORS" || fail "vectors are stale"
"$PYTHON" "$INGOT_ROOT/tests/readers/vectors.py" --reader "$INGOT_ROOT/examples/readers/python" \
    "$VECTORS" || fail "the Python reader"
expect_exit 0 ingot-verify "$VECTORS/valid/mixed.ingot"
expect_exit 1 ingot-verify "$VECTORS/invalid/root.ingot"
grep -q 'E_ROOT\|root' err || fail "the error does not name the rule"
expect_exit 1 ingot-verify "$VECTORS/valid/meta-no-json.ingot" --json
grep -q '"E_META"' out || fail "META that is no JSON"
