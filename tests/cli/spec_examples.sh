# What spec/container.md shows is what programs make of the vectors: the example of appendix A byte by
# byte, and the entry for file(1) of appendix B.
. "$INGOT_ROOT/tests/lib.sh"
need file ingot-convert
need_python
VECTORS=$INGOT_ROOT/spec/vectors
MAGIC=$INGOT_ROOT/spec/ingot.magic

"$PYTHON" "$INGOT_ROOT/tests/vectors/hexdump.py" --check "$INGOT_ROOT/spec/container.md" \
    "$VECTORS/valid/tiny.ingot" || fail "appendix A: hexdump.py --write mends it"

# described FILE TEXT: file says exactly this.
described() {
    said=$(file -b -m "$MAGIC" "$1" 2>err) || fail "file: $1"
    [ "$said" = "$2" ] || fail "$1: $said, expected: $2"
    [ ! -s err ] || fail "file complains: $(cat err)"
}
model="Ingot container version 1.0, model"
described "$VECTORS/valid/tiny.ingot" "$model, not compressed, 4648 bytes"
described "$VECTORS/valid/zstd-stored.ingot" \
    "$model, compressed, $(wc -c <"$VECTORS/valid/zstd-stored.ingot") bytes"
described "$VECTORS/valid/set-00002-of-00003.ingot" \
    "$model, not compressed, shard 2 of 3, $(wc -c <"$VECTORS/valid/set-00002-of-00003.ingot") bytes"
described "$VECTORS/valid/statistics.ingot" \
    "Ingot container version 1.0, statistics, not compressed, 4392 bytes"
described "$VECTORS/future/minor-version.ingot" \
    "Ingot container version 1.9, model, not compressed, $(wc -c <"$VECTORS/future/minor-version.ingot") bytes"
described "$VECTORS/invalid/profile.ingot" \
    "Ingot container version 1.0, unknown profile, not compressed, $(wc -c <"$VECTORS/invalid/profile.ingot") bytes"
ingot-convert "$INGOT_ROOT/tests/fixtures/tiny-llama" -o a.ingot --bits 4 >/dev/null 2>&1 ||
    fail "conversion"
described a.ingot "$model, not compressed, $(wc -c <a.ingot) bytes"
for other in "$INGOT_ROOT/README.md" "$VECTORS/invalid/magic.ingot" \
    "$VECTORS/invalid/magic-text-mode.ingot" "$VECTORS/invalid/short-empty.ingot"; do
    case $(file -b -m "$MAGIC" "$other") in
        *Ingot*) fail "$other is no container" ;;
    esac
done
[ "$(file -b --mime-type -m "$MAGIC" a.ingot)" = application/vnd.ingot.container ] || fail "mime"
[ "$(file -b --extension -m "$MAGIC" a.ingot)" = ingot/calib ] || fail "extension"
