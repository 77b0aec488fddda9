# Conversions on a CUDA device beside the CPU's: of equal quality in the mean over several texts
# (spec/quality.md, section 5), and repeatable where the model writes the text itself.  Skipped
# without a device.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-inspect ingot-run ingot-verify
need_python json
need_cuda

# own OUT SEED
own() {
    expect_exit 0 ingot-convert "$MODEL" -o "$1.ingot" --text @self --samples 9 --seq-len 100 \
        --effort fast --device cuda --seed "$2"
}
own first 3
own again 3
cmp first.ingot again.ingot || fail "the model writes another text with the same seed"
own other 4
for name in first other; do
    ingot-inspect $name.ingot | sed -n 's/.*calibration.text_digest *//p' >$name.digest
done
[ -s first.digest ] || fail "the text's digest is not recorded"
! cmp -s first.digest other.digest || fail "the seed writes no other text"

# same MODEL CALIBRATION EVALUATION SETS SAMPLES WINDOWS; one thread a conversion on the CPU wastes
# least of it, and its conversions take most of the time.
same() {
    "$PYTHON" "$INGOT_ROOT/tests/same_quality.py" "$1" --calibration "$2" --evaluation "$3" \
        --sets "$4" --samples "$5" --windows "$6" --judge cuda --build "$INGOT_BUILD" \
        --jobs "$(nproc)" --threads 1 || fail "$1: the device converts to another quality"
}
same "$MODEL" "$MODEL/calibration.txt" "$MODEL/evaluation.txt" 8 16 0
texts=$INGOT_SHARED/corpora
if [ -d "$INGOT_SHARED/models/books-28m" ]; then
    same "$INGOT_SHARED/models/books-28m" "$texts/books-calibration.txt" "$texts/books-eval.txt" \
        12 16 100
else
    echo "SKIP: $INGOT_SHARED/models/books-28m is not there"
fi
if [ -n "${INGOT_SMOLLM2:-}" ]; then
    same "$INGOT_SMOLLM2" "$texts/books-calibration.txt" "$texts/books-eval.txt" 6 12 100
else
    echo "SKIP: smollm2-135m, INGOT_SMOLLM2 does not name its folder"
fi
