# The conformance vectors are what their generator, which knows the specification alone, writes;
# the Python reader gives their values and first errors; ingot-verify the same errors.
. "$INGOT_ROOT/tests/lib.sh"
. "$INGOT_ROOT/tests/readers/odd_files.sh"
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

# META, which readers hand out as bytes and the tool looks into.
"$PYTHON" - "$VECTORS" <<'PYTHON' >metas
import json, sys
for entry in json.load(open(sys.argv[1] + "/vectors.json"))["valid"]:
    if "/meta-" in entry["file"]:
        print(entry["file"], entry.get("meta_code", "null"))
PYTHON
while read -r file verdict; do
    expect_exit $([ "$verdict" = null ] && echo 0 || echo 1) ingot-verify "$VECTORS/$file" --json
    grep -qE "\"error\": \"?$verdict\"?," out ||
        fail "$file: not $verdict: $(grep '"error' out)"
done <metas
[ "$(wc -l <metas)" -ge 10 ] || fail "vectors of META are missing"

odd_files ingot-verify --json
odd_files "$PYTHON" "$INGOT_ROOT/examples/readers/python/ingot_reader.py" verify
