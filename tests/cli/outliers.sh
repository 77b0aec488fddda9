# Planted outliers (spec/quality.md, section 8): plain rounding collapses, what is made for outliers holds.
. "$INGOT_ROOT/tests/lib.sh"

need_python numpy
plant() {
    "$PYTHON" "$INGOT_ROOT/tests/plant_outliers.py" "$MODEL" "$@"
}
# measure MODEL_DIR OPTION...: converts it; sets KLD, SOURCE and prints them.
measure() {
    from=$1
    shift
    ingot-convert "$from" -o out.ingot --force "$@" >/dev/null 2>err || { cat err >&2; fail "conversion"; }
    ingot-verify out.ingot --quick --source "$from" --text "$MODEL/evaluation.txt" --seq-len 256 \
        --windows 2 --json >out 2>err || { cat err >&2; fail "verification"; }
    KLD=$(sed -n 's/^ "kld_mean": \([-0-9.e+]*\),*$/\1/p' out)
    SOURCE=$(sed -n 's/^ "source_perplexity": \([-0-9.e+]*\),*$/\1/p' out)
    echo "$from $*: KL $KLD, perplexity of the source $SOURCE"
}
# expect EXPRESSION: of numbers, as awk reads it.
expect() {
    awk "BEGIN { exit !($1) }" || fail "not so: $1"
}
CALIBRATION="--text $MODEL/calibration.txt --samples 8 --seq-len 256"

measure "$MODEL" --method rtn
PLAIN=$KLD ORIGINAL=$SOURCE

# ---- columns times 100, their inputs divided: the same function ----
plant columns --columns 1
measure columns --method rtn
expect "$SOURCE / $ORIGINAL < 1.001 && $SOURCE / $ORIGINAL > 0.999"
expect "$KLD > 1 && $KLD > 8 * $PLAIN"
# Folds are searched for long: those of one block.
echo '{"tensors": [{"pattern": "model.layers.[1-3].*", "method": "keep"}]}' >first.json
measure columns --recipe first.json --method rtn
expect "$KLD > 0.5"
# shellcheck disable=SC2086
measure columns $CALIBRATION --recipe first.json --method awq
expect "$KLD < 0.1"
# shellcheck disable=SC2086
measure columns $CALIBRATION --method gptq --outliers 0.01
expect "$KLD < 0.5"

# ---- one weight a row of 100 times the mean ----
plant lone --lone 4
measure lone --method rtn
expect "$KLD > 1 && $KLD > 8 * $PLAIN"
# shellcheck disable=SC2086
measure lone $CALIBRATION --method gptq --outliers 0.01
expect "$KLD < 0.5"
