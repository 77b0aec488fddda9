# Folds and inputs in turn: what awq+gptq makes of a checkpoint is what gptq makes of the checkpoint
# that has those folds in its weights.  Statistics, drift and the block that the forward pass sees
# are under folds in one and without in the other.
. "$INGOT_ROOT/tests/lib.sh"

need_python numpy
export PYTHONDONTWRITEBYTECODE=1
# Two blocks: the second one's inputs have drifted.
echo '{"tensors": [{"pattern": "model.layers.[2-9].*", "method": "keep"}]}' >recipe.json
convert() {
    ingot-convert "$1" -o "$2.ingot" --method "$3" --recipe recipe.json \
        --text "$MODEL/calibration.txt" --samples 16 --seq-len 256 --json >"$2.json" 2>err ||
        { cat err >&2; fail "conversion by $3"; }
}
convert "$MODEL" folds awq+gptq
"$PYTHON" "$INGOT_ROOT/tests/fold_checkpoint.py" "$MODEL" folds.ingot folded
convert folded none gptq
ingot-verify folds.ingot --source "$MODEL" >/dev/null || fail "against the checkpoint"
"$PYTHON" - <<'EOF'
import json, sys
def errors(path):
    with open(path, encoding="utf-8") as file:
        return {t["name"]: t["output_error"] for t in json.load(file)["tensors"]
                if t["output_error"] is not None}
folds, none = errors("folds.json"), errors("none.json")
apart = {name: folds[name] / none[name] - 1 for name in folds}
print("\n".join("%s %.5f %+.5f" % (name, none[name], by) for name, by in apart.items()))
# Codes part where a sum is rounded otherwise, in the second block for all that follows.
sys.exit(len(folds) != 14 or max(abs(by) for by in apart.values()) > 0.02)
EOF
