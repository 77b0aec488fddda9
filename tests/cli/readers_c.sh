# The C reader (examples/readers/c): at most 400 lines; under the sanitizers the conformance vectors, and
# damaged files with the first error that the Python reader finds.
. "$INGOT_ROOT/tests/lib.sh"
. "$INGOT_ROOT/tests/readers/odd_files.sh"
need ingot-convert cc
need_python numpy xxhash zstandard
export PYTHONDONTWRITEBYTECODE=1
READER=$INGOT_ROOT/examples/readers/c/ingot_reader.c
VECTORS=$INGOT_ROOT/spec/vectors
TESTS=$INGOT_ROOT/tests/readers

[ "$(wc -l <"$READER")" -le 400 ] || fail "more than 400 lines"

cc -std=c11 -O2 -Wall -Wextra -Werror "$READER" -lxxhash -o reader || fail "it does not compile"
tiny=$INGOT_ROOT/tests/fixtures/tiny-llama
ingot-convert "$tiny" -o tiny.ingot --bits 3 --asym --group row --outliers 0.02 >/dev/null 2>&1 ||
    fail "conversion"
ingot-convert "$tiny" -o s.ingot --bits 4 --zstd --shard-size 20000 >/dev/null 2>&1 ||
    fail "conversion to shards"
expect_exit 0 ./reader tiny.ingot

cc -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all "$READER" -lxxhash \
    -o checked || fail "it does not compile with sanitizers"
# The reader ends without releasing what it holds.
export ASAN_OPTIONS=detect_leaks=0
"$PYTHON" "$TESTS/vectors_of_program.py" --without-zstd "$VECTORS" ./checked || fail "the vectors"
odd_files ./checked
"$PYTHON" "$TESTS/differential.py" --reader "$INGOT_ROOT/examples/readers/python" \
    --program-without-zstd ./checked --count 150 \
    tiny.ingot s-00001-of-00002.ingot "$VECTORS/valid/zstd-stored.ingot" \
    "$VECTORS/valid/zstd-chunks.ingot" "$VECTORS/valid/set-00002-of-00003.ingot" \
    "$VECTORS/valid/mixed.ingot" || fail "readers differ"

# any_bytes NAME FILE: OK or a code, and nothing for the sanitizers to say.
any_bytes() {
    code=0
    ./checked "$2" >out 2>err </dev/null || code=$?
    if [ "$code" -gt 2 ] || grep -q 'Sanitizer\|runtime error' err; then
        fail "$1: exit code $code: $(head -n 3 err)"
    fi
}
size=$(wc -c <tiny.ingot)
for length in 0 1 7 127 128 159 160 500 4095 4096 5000 $((size / 2)) $((size - 33)) $((size - 1)); do
    head -c "$length" tiny.ingot >cut.ingot
    any_bytes "cut at $length" cut.ingot
    [ "$code" = 1 ] || fail "cut at $length: exit code $code"
done
