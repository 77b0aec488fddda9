# examples/torch/load_ingot.py: the perplexity that `transformers` computes from a container is the
# one that ingot-verify prints, to 0.01 %.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify
need_python numpy xxhash zstandard torch transformers tokenizers
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
TEXT=$MODEL/evaluation.txt

# same FILE ARGUMENT...: both perplexities of the text.
same() {
    path=$1
    shift
    expect_exit 0 "$PYTHON" "$INGOT_ROOT/examples/torch/load_ingot.py" "$path" --text "$TEXT" "$@"
    theirs=$(sed -n 's/^perplexity \([0-9.]*\) over .*/\1/p' out)
    expect_exit 0 ingot-verify "$path" --text "$TEXT" "$@" --json
    ours=$(sed -n 's/^ "perplexity": \([0-9.e+]*\),$/\1/p' out)
    awk -v a="$ours" -v b="$theirs" 'BEGIN {
        d = (a > b ? a - b : b - a)
        exit !(a > 1 && b > 1 && d <= 1e-4 * a)
    }' || fail "$path: ingot-verify $ours, transformers $theirs"
    echo "$path: ingot-verify $ours, transformers $theirs"
}

# convert OUT ARGUMENT...
convert() {
    out=$1
    shift
    ingot-convert "$@" -o "$out" >/dev/null 2>&1 || fail "conversion: $*"
}

# Rounded to 3 bits with outliers, compressed; folds and shards; a tied head with bits of its own.
convert a.ingot "$MODEL" --bits 3 --asym --outliers 0.005 --zstd
same a.ingot --windows 4
convert s.ingot "$MODEL" --method awq+gptq --text "$MODEL/calibration.txt" --samples 4 \
    --seq-len 128 --shard-size 1000000
same s-00002-of-00003.ingot --windows 4 --seq-len 200
convert h.ingot "$MODEL" --head-bits 6 --embed-bits 8
same h.ingot --windows 2

if [ -n "${INGOT_SMOLLM2:-}" ]; then
    convert m.ingot "$INGOT_SMOLLM2"
    same m.ingot --windows 2 --seq-len 512
else
    echo "SKIP: smollm2-135m, INGOT_SMOLLM2 does not name its folder"
fi

# A damaged container gives its code and no model.
head -c 1000000 a.ingot >cut.ingot
expect_exit 1 "$PYTHON" "$INGOT_ROOT/examples/torch/load_ingot.py" cut.ingot --text "$TEXT"
grep -q 'E_FILE_SIZE' err || fail "a cut file: $(cat err)"
