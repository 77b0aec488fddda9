# The C reader (examples/readers/c) over the conformance vectors, and over damaged files under the
# sanitizers: a code or OK for any bytes.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert cc
need_python xxhash
READER=$INGOT_ROOT/examples/readers/c/ingot_reader.c
VECTORS=$INGOT_ROOT/spec/vectors

cc -std=c11 -O2 -Wall -Wextra -Werror "$READER" -lxxhash -o reader || fail "it does not compile"
"$PYTHON" "$INGOT_ROOT/tests/readers/vectors_of_program.py" --without-zstd "$VECTORS" ./reader ||
    fail "the vectors"

ingot-convert "$INGOT_ROOT/tests/fixtures/tiny-llama" -o tiny.ingot --bits 3 --asym --group row \
    --outliers 0.02 >/dev/null 2>&1 || fail "conversion"
expect_exit 0 ./reader tiny.ingot

cc -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all "$READER" -lxxhash \
    -o checked || fail "it does not compile with sanitizers"
# any_bytes NAME FILE: OK or a code, and nothing for the sanitizers to say.
# The reader ends at its first error without releasing what it holds.
export ASAN_OPTIONS=detect_leaks=0
any_bytes() {
    code=0
    ./checked "$2" >out 2>err </dev/null || code=$?
    if [ "$code" -gt 2 ] || grep -q 'Sanitizer\|runtime error' err; then
        fail "$1: exit code $code: $(head -n 3 err)"
    fi
}
for file in "$VECTORS"/invalid/*.ingot "$VECTORS"/future/*.ingot; do
    any_bytes "$(basename "$file")" "$file"
done
size=$(wc -c <tiny.ingot)
for length in 0 1 7 127 128 159 160 500 4095 4096 5000 $((size / 2)) $((size - 33)) $((size - 1)); do
    head -c "$length" tiny.ingot >cut.ingot
    any_bytes "cut at $length" cut.ingot
    [ "$code" = 1 ] || fail "cut at $length: exit code $code"
done
