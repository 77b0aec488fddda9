# Weights that no trained model has: whatever ingot-convert makes of them is valid, or it says why not.
. "$INGOT_ROOT/tests/lib.sh"
need_python
head -c 6000 "$MODEL/calibration.txt" >text.txt
"$PYTHON" "$INGOT_ROOT/tests/tiny_checkpoint.py" plain

# make_model NAME EXPRESSION [PATTERN]: the tiny model, with EXPRESSION of its value w, row i, column j
# in place of each weight of the matrices whose name has PATTERN.
make_model() {
    cp -r plain "$1"
    "$PYTHON" "$INGOT_ROOT/tests/change_weights.py" "$1/model.safetensors" "${3:-_proj}" "$2"
}

# expect_valid MODEL OPTION...: the conversion's own verifier accepts it; out and err are the conversion's.
expect_valid() {
    model=$1
    shift
    ingot-convert "$model" -o out.ingot --force --threads 1 "$@" >out 2>err ||
        fail "$model $*: $(tail -n 1 err)"
    ingot-verify out.ingot --source "$model" --threads 1 --json >verified.json 2>verify.err ||
        fail "$model $*: $(tail -n 1 verify.err)"
}

# expect_refused TEXT MODEL OPTION...: not converted, for this reason, and nothing is left.
expect_refused() {
    text=$1
    shift
    expect_exit 2 ingot-convert "$@" -o refused.ingot --threads 1
    expect_error "$text"
    expect_no_files refused.ingot
}

printf '{"defaults": {"scale_dtype": "f16"}}' >f16.json
DATA="--text text.txt --samples 12 --seq-len 64"

# No loss tells: inputs whose squares are below FP32, or none at all.
make_model small 'w * 1e-27'
make_model dead 'w * 1e25' down_proj
make_model idle '0' up_proj
# The plain scales are below their type.
make_model tiny 'w * 3e-30'
# A correction for drift, or tuning, takes weights far away.
make_model columns 'w * 10 ** (11 * j / 48 - 8)'
make_model constant '1' o_proj
make_model lone '1e8 if j == 5 and i % 2 == 0 else w'
make_model rows 'w if i % 3 else 0'
for model in small dead idle tiny columns constant lone rows; do
    # shellcheck disable=SC2086
    for options in "--method rtn" "--effort fast" "--method gptq $DATA" "--method awq+gptq $DATA"; do
        expect_valid $model $options --bits 4 --group 32
        expect_valid $model $options --bits 8 --group row --asym
        expect_valid $model $options --bits 2 --group row
        expect_valid $model $options --bits 4 --group 32 --outliers 0.02
    done
done
# shellcheck disable=SC2086
expect_valid columns --effort best $DATA --bits 2 --group row
# The ledger calls plain rounding what is that: not what was learned from there on.
cat >methods.py <<'END'
import json
with open("verified.json", encoding="utf-8") as file:
    for t in json.load(file)["tensors"]:
        if t["method"] == "rtn" and not t["folded"]:
            assert t["fallback"] and t["weight_error"] == t["weight_error_rtn"], t
        elif t["kind"] == "grouped":
            assert t["method"] in ("rtn", "gptq", "awq+gptq") and not t["fallback"] or t["folded"], t
END
for options in "lone --bits 8 --group row" "dead --bits 3" "lone --bits 3"; do
    # shellcheck disable=SC2086
    expect_valid $options --effort best $DATA
    "$PYTHON" methods.py || fail "$options"
done

# Outliers that F16 would not hold are F32 where the plan has seen such weights.
make_model beyond '1e6 if i == 31 and j == 47 else w' layers.0.mlp.down_proj
make_model flat 'w * 1e-9' layers.0.mlp.down_proj
make_model vast 'w * 1e9' layers.0.mlp.down_proj
cat >errors.py <<'END'
import json
def load(name):
    with open(name, encoding="utf-8") as file:
        return {t["name"]: t for t in json.load(file)["tensors"]}
made, stored, plain = load("out"), load("verified.json"), load("without.json")
assert not any(t["outliers"]["left_out"] for t in made.values()), made
dtypes = {name: t["dtype"] for name, t in stored.items() if t["kind"] == "grouped"}
at = "model.layers.0.mlp.down_proj.weight"
assert dtypes.pop(at) == "F32" and set(dtypes.values()) == {"F16"}, dtypes
error = "weight_error" if stored[at]["output_error"] is None else "output_error"
assert stored[at][error] < plain[at][error], (stored[at], plain[at])
END
for model in beyond flat vast; do
    # shellcheck disable=SC2086
    for options in "--method rtn" "--effort fast --bits 8" "--method gptq $DATA" \
        "--method awq+gptq $DATA --bits 8" "--effort best $DATA"; do
        expect_valid $model $options
        mv verified.json without.json
        expect_valid $model $options --outliers 0.03 --json
        "$PYTHON" errors.py || fail "$model $options"
    done
done
# shellcheck disable=SC2086
expect_valid flat --target-bpw 6.89 $DATA --outliers 0.01

# Where it has not, of 256 rows every fourth, they are none, which is told once.
make_model unseen '1e6 if i % 4 == 3 and j == 9 else w' embed_tokens
printf '{"tensors": [{"pattern": "model.embed_tokens.weight", "bits": 8, "outliers": 0.02}]}' >embed.json
TOLD='of F16 were left out, others are in their place: 64, in 1 matrices (the first: model.embed_tokens'
for options in "--method rtn" "--method gptq $DATA"; do
    # shellcheck disable=SC2086
    expect_valid unseen $options --recipe embed.json
    [ "$(grep -cF "$TOLD" err)" = 1 ] || fail "told: $(cat err)"
done

# Weights that scales cannot hold.
make_model below 'w * 1e-6'
expect_valid below --bits 8
expect_refused 'q_proj.weight: its weights are too small for F16 scales (a rule of a recipe' \
    below --recipe f16.json --bits 8
# shellcheck disable=SC2086
expect_refused 'q_proj.weight: its weights are too small for F16 scales (a rule of a recipe' \
    below --recipe f16.json --bits 8 --method gptq $DATA
make_model faint 'w * 2e-29'
expect_refused 'q_proj.weight: its weights are too small for BF16 scales (keep the tensor by' faint --bits 8
make_model large 'w * 1e7 if i == 1 else w' gate_proj
printf '{"defaults": {"scale_dtype": "bf16"}}' >bf16.json
expect_refused 'gate_proj.weight: its weights are too large for F16 scales (a rule of a recipe gives' \
    large --recipe f16.json --bits 4
expect_valid large --recipe bf16.json
make_model huge 'w * 1e37'
expect_refused 'too large for BF16 scales (keep the tensor by a rule of a recipe)' \
    huge --method rtn --bits 2

# Frequencies that are left of a layer that was taken out are no layer.
cp -r plain pruned
"$PYTHON" - pruned/model.safetensors <<'EOF'
import json, struct, sys
with open(sys.argv[1], "rb") as file:
    size, = struct.unpack("<Q", file.read(8))
    header, data = json.loads(file.read(size)), file.read()
header["model.layers.4.self_attn.rotary_emb.inv_freq"] = {
    "dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
text = json.dumps(header).encode()
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data + struct.pack("<2f", 1.0, 0.5))
EOF
expect_exit 0 ingot-convert pruned -o pruned.ingot
expect_exit 0 ingot-verify pruned.ingot --source pruned
