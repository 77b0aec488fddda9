# The Rust reader (examples/readers/rust): the conformance vectors, random legal containers, and
# damaged ones beside the other readers and ingot-verify: the same first error from all four.
. "$INGOT_ROOT/tests/lib.sh"
. "$INGOT_ROOT/tests/readers/odd_files.sh"
need ingot-convert ingot-verify cc
need_python numpy xxhash zstandard
# The oldest compiler first: what Debian has is what the reader must build with.
RUSTC=$(command -v /usr/bin/rustc || command -v rustc) || skip "no rustc (scripts/setup.sh --test)"
export PYTHONDONTWRITEBYTECODE=1
READERS=$INGOT_ROOT/examples/readers
TESTS=$INGOT_ROOT/tests/readers

compile() {
    "$RUSTC" --edition 2021 -D warnings "$@" "$READERS/rust/ingot_reader.rs" ||
        fail "it does not compile: $*"
}
compile -O -o reader
"$PYTHON" "$TESTS/vectors_of_program.py" "$INGOT_ROOT/spec/vectors" ./reader || fail "the vectors"
odd_files ./reader

# From here on a computation that wraps around ends the reader with a panic, exit code 101.
compile -C opt-level=1 -C debug-assertions=on -o checked
"$PYTHON" "$TESTS/random_containers.py" --reader "$READERS/python" --program ./checked --count 40 ||
    fail "random containers"

tiny=$INGOT_ROOT/tests/fixtures/tiny-llama
convert() {
    out=$1
    shift
    ingot-convert "$@" -o "$out" >/dev/null 2>&1 || fail "conversion: $*"
}
convert a.ingot "$tiny" --bits 3 --asym --group row --outliers 0.02
convert z.ingot "$tiny" --bits 5 --group row --outliers 0.02 --zstd
convert s.ingot "$tiny" --bits 4 --zstd --shard-size 20000
cc -std=c11 -O2 "$READERS/c/ingot_reader.c" -lxxhash -o c_reader || fail "the C reader"
"$PYTHON" "$TESTS/differential.py" --reader "$READERS/python" --program ./checked \
    --program-without-zstd ./c_reader --count 150 \
    a.ingot z.ingot s-00001-of-00002.ingot s-00002-of-00002.ingot || fail "readers differ"
"$PYTHON" "$TESTS/broken_containers.py" --reader "$READERS/python" --program ./checked \
    --program-without-zstd ./c_reader --count 150 || fail "readers differ on broken plans"

# ---- what is no container, and what the system refuses ----
size=$(wc -c <a.ingot)
for length in 0 1 7 127 128 159 160 500 4095 4096 5000 $((size / 2)) $((size - 33)) $((size - 1)); do
    head -c "$length" a.ingot >cut.ingot
    expect_exit 1 ./checked cut.ingot
done
expect_exit 2 ./reader no/such/file
grep -q '^E_NOT_FOUND' err || fail "a missing file: $(cat err)"
expect_exit 2 ./reader .
grep -q '^E_IO' err || fail "a folder: $(cat err)"
expect_exit 2 ./reader
code=0
./reader --values a.ingot >/dev/full 2>err || code=$?
[ "$code" = 2 ] || fail "a full disk: exit code $code"
code=0
(ulimit -v 20000 && ./reader a.ingot) >out 2>err || code=$?
[ "$code" = 0 ] || fail "20 MB are too little: exit code $code: $(cat err)"
