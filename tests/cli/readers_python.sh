# The Python reader (examples/readers/python): its values against plain arithmetic, random legal
# containers and those of the converter, damaged ones beside ingot-verify, and what it says without
# its packages.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify ingot-inspect
need_python numpy xxhash zstandard
export PYTHONDONTWRITEBYTECODE=1
READER=$INGOT_ROOT/examples/readers/python
TESTS=$INGOT_ROOT/tests/readers

reader() {
    "$PYTHON" "$READER/ingot_reader.py" "$@"
}

# basic ARGUMENT...: the reader where only numpy is installed.
basic() {
    "$PYTHON" - "$READER" "$@" <<'EOF'
import sys
sys.modules["xxhash"] = sys.modules["zstandard"] = None
sys.path.insert(0, sys.argv.pop(1))
import ingot_reader
sys.exit(ingot_reader.main())
EOF
}

"$PYTHON" "$TESTS/test_values.py" --reader "$READER" || fail "values"
"$PYTHON" "$TESTS/random_containers.py" --reader "$READER" --tool ingot-verify --count 40 ||
    fail "random containers"

# ---- containers of the converter: valid, with the digests that ingot-inspect prints ----
tiny=$INGOT_ROOT/tests/fixtures/tiny-llama
convert() {
    out=$1
    shift
    ingot-convert "$@" -o "$out" >/dev/null 2>&1 || fail "conversion: $*"
}
convert a.ingot "$tiny" --bits 3 --asym --group row --outliers 0.02
convert z.ingot "$tiny" --bits 5 --group row --outliers 0.02 --zstd
convert s.ingot "$tiny" --bits 4 --zstd --shard-size 20000
convert demo.ingot "$MODEL" --head-bits 8
for path in a.ingot z.ingot s-00002-of-00002.ingot demo.ingot; do
    expect_exit 0 reader verify "$path"
    expect_exit 0 reader info "$path"
    id=$(sed -n 's/^content id //p' out)
    ingot-inspect "$path" --json >inspect.json
    grep -q "\"content_id\": \"$id\"" inspect.json || fail "$path: another content id: $id"
done
expect_exit 0 reader tensor demo.ingot model.norm.weight norm.npy
expect_exit 0 reader file demo.ingot config.json config.json
cmp config.json "$MODEL/config.json" || fail "config.json differs"

# ---- the same first error as ingot-verify ----
"$PYTHON" "$TESTS/differential.py" --reader "$READER" --count 300 \
    a.ingot z.ingot s-00001-of-00002.ingot s-00002-of-00002.ingot || fail "readers differ"

# ---- without packages: what can be checked is checked, the rest is named ----
expect_exit 2 basic verify a.ingot
grep -q 'E_UNSUPPORTED' err && grep -q 'xxhash' err || fail "the missing package is not named"
expect_exit 0 basic info a.ingot
grep -q 'NO DIGEST CHECKED' out || fail "a basic reader does not say so"
expect_exit 0 basic tensor a.ingot model.norm.weight norm.npy
expect_exit 2 basic tensor z.ingot model.layers.0.mlp.up_proj.weight x.npy
grep -q 'zstandard' err || fail "the missing package is not named"
head -c 2000 a.ingot >cut.ingot
expect_exit 1 basic verify cut.ingot
grep -q 'E_FILE_SIZE' err || fail "a cut file: $(cat err)"
expect_exit 2 reader verify no/such/file
grep -q 'E_NOT_FOUND' err || fail "a missing file: $(cat err)"
expect_exit 2 reader tensor a.ingot no.such.tensor x.npy
expect_exit 2 reader tensor a.ingot model.norm.weight /dev/full
