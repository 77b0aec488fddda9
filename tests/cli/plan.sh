# ingot-convert --dry-run: sizes by hand, a plan from config.json alone, and the size that is met.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-calib
need_python json

text=$MODEL/calibration.txt

# check FILE EXPRESSION: what Python says of the plan p.
check() {
    "$PYTHON" -c "import json,sys; p=json.load(open('$1'))['plan']; sys.exit(not ($2))" ||
        fail "not so in $1: $2"
}

# The published shape of Llama-2-70B.  Weights by hand: embedding and head, and per block q and o,
# k and v, gate, up and down, two norms; a last norm.
cat >config.json <<'EOF'
{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
 "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-05,
 "hidden_act": "silu", "max_position_embeddings": 4096, "tie_word_embeddings": false,
 "torch_dtype": "float16"}
EOF
matrices="80 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28672 * 8192)"
ends="2 * 32000 * 8192"
vectors="(80 * 2 + 1) * 8192"
expect_exit 0 ingot-convert config.json --dry-run --json
cp out four.json
check four.json "p['parameters'] == $matrices + $ends + $vectors"
check four.json "p['f32_bytes'] == 4 * p['parameters'] and p['f16_bytes'] == 2 * p['parameters']"
check four.json "p['quantized_weights'] == $matrices and not p['has_weights']"
check four.json "0 < p['file_bytes'] - (($matrices) * (0.5 + 2 / 128) + 2 * ($ends + $vectors)) < 2e6"
check four.json "[c['fits'] for c in p['cards']] == [False, True, True]"
check four.json "p['kv_bytes_per_token'] == 80 * 2 * 8 * 128 * 2"
check four.json "p['cards'][2]['kv_tokens'] == (80 * 10**9 - p['file_bytes']) // p['kv_bytes_per_token']"
expect_exit 0 ingot-convert . --dry-run --bits 8 --group row --json
cp out eight.json
rows="80 * (2 * 8192 + 2 * 1024 + 2 * 28672 + 8192)"
check eight.json "0 < p['file_bytes'] - ($matrices + 2 * ($rows + $ends + $vectors)) < 2e6"
check eight.json "[c['fits'] for c in p['cards']] == [False, False, True]"
expect_exit 0 ingot-convert config.json --dry-run --target-bpw 3.5 --text none.txt --json
cp out target.json
check target.json "p['seconds'] is None"
check target.json "p['bits_per_weight'] == 3.5 and p['file_bytes'] < 33e9"
expect_exit 2 ingot-convert config.json --dry-run --device banana
expect_error "unknown device 'banana'"
expect_exit 2 ingot-convert config.json --dry-run --devices cpu,banana
expect_error "unknown device 'banana'"
expect_exit 2 ingot-convert config.json --dry-run --devices cpu,
expect_error "unknown device ''"
expect_exit 2 ingot-convert config.json --dry-run --devices 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16
expect_error "more than 16 devices"
expect_exit 0 ingot-convert config.json --dry-run
grep -q '275.9 GB in F32, 138.0 GB in F16' out || fail "the sizes are not printed"
expect_exit 2 ingot-convert config.json -o no.ingot
# An embedding that is larger than a block is read in parts.
sed 's/8192/2048/; s/28672/8192/; s/32000/128256/; s/"num_attention_heads": 64/"num_attention_heads": 32/' \
    config.json >ends.json
expect_exit 0 ingot-convert ends.json --dry-run --json
cp out plan.json
check plan.json "p['cpu']['host_bytes'] < 2 * 128256 * 2048"
sed 's/float16/float8/' config.json >other.json
expect_exit 2 ingot-convert other.json --dry-run
expect_error "float8"

# With weights: the file has the size of the plan, alone and as a set, and the plan that its
# config.json gives, but for the files that travel along.
"$PYTHON" "$INGOT_ROOT/tests/tiny_checkpoint.py" tiny
head -c 3000 "$text" >text.txt
for options in "--method rtn" "--method rtn --shard-size 20K" \
    "--effort best --samples 4 --seq-len 32 --text text.txt" \
    "--method awq --bits 3 --samples 2 --seq-len 64 --text text.txt"; do
    rm -f out.ingot out-*.ingot
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert tiny --group 32 $options --dry-run --json
    cp out plan.json
    check plan.json "0 < p['seconds'] < 1000"
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert tiny --group 32 -o out.ingot $options --json
    check plan.json "p['file_bytes'] == $(cat out*.ingot | wc -c)"
    peak=$(sed -n 's/.*"peak_host_bytes": \([0-9]*\).*/\1/p' out)
    check plan.json "p['cpu']['host_bytes'] < 4 * $peak"
    check plan.json "p['cuda']['device_bytes'] > 32 << 20" # what cuBLAS works in
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert tiny/config.json --group 32 $options --dry-run --json
    "$PYTHON" - plan.json out <<'EOF'
import json, sys
real, described = (json.load(open(name))["plan"] for name in sys.argv[1:])
by_name = lambda p: {t["name"]: t for t in p["tensors"]}
assert by_name(real) == by_name(described), "the tensors differ"
assert 0 <= real["file_bytes"] - described["file_bytes"] < 2e4, "the sizes differ"
EOF
done

# SHA-256 of the source is in META, which takes whole pages: a rule that does nothing fills one almost.
grown=
for length in $(seq 40 60 4200); do
    printf '{"tensors": [{"pattern": "%0*d", "bits": 4}]}' "$length" 0 >wide.json
    rm -f out.ingot
    expect_exit 0 ingot-convert tiny --recipe wide.json --group 32 --dry-run --json
    cp out plan.json
    expect_exit 0 ingot-convert tiny --recipe wide.json --group 32 --sha256 --dry-run --json
    grep file_bytes out >with
    grep file_bytes plan.json >without
    cmp -s with without || { grown=$length && break; }
done
[ -n "$grown" ] || fail "--sha256 takes no room in the plan"
cp out plan.json
expect_exit 0 ingot-convert tiny --recipe wide.json --group 32 --sha256 -o out.ingot
check plan.json "p['file_bytes'] == $(wc -c <out.ingot)"

# Memory of the table that a target of bits per weight is chosen by: the hidden states of 85 models on
# eight windows.
expect_exit 0 ingot-convert "$MODEL" --dry-run --bits 3 --samples 8 --seq-len 128 --text "$text" --json
cp out plan.json
plain=$(sed -n 's/.*"host_bytes": \([0-9]*\).*/\1/p' plan.json | head -n 1)
expect_exit 0 ingot-convert "$MODEL/config.json" --dry-run --target-bpw 3.5 --samples 8 --seq-len 128 \
    --text "$text" --json
cp out plan.json
check plan.json "p['cpu']['host_bytes'] > $plain + 60 * 8 * 128 * 256 * 4"

# Of a text that the model writes: keys and values of 32 sequences.
expect_exit 0 ingot-convert "$MODEL/config.json" --dry-run --text @self --samples 32 --seq-len 512 --json
cp out plan.json
check plan.json "p['cpu']['host_bytes'] > 32 * 512 * 4 * 2 * 128 * 4"
check plan.json "p['cuda']['device_bytes'] > 32 * 512 * 4 * 2 * 128 * 4"

# With statistics that are there: no windows are cut.
expect_exit 0 ingot-calib "$MODEL" --text "$text" --samples 4 --seq-len 64 --device cpu -o demo.calib
expect_exit 0 ingot-convert "$MODEL" --dry-run --stats demo.calib --device cpu --json
cp out plan.json
check plan.json "p['tokens'] == 0 and p['cpu']['host_bytes'] > 0"
