# ingot-convert: what it does with a small model, and what it refuses before any work.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify

text=$MODEL/calibration.txt
few="--samples 4 --seq-len 128"

# Plain rounding; the same bytes for any number of threads; never over an existing file.
expect_exit 0 ingot-convert "$MODEL" -o one.ingot --threads 1
expect_exit 0 ingot-convert "$MODEL" -o two.ingot --threads 2
cmp one.ingot two.ingot || fail "the number of threads changed the bytes"
expect_exit 2 ingot-convert "$MODEL" -o one.ingot
expect_error "one.ingot"
expect_error "--force"
cmp one.ingot two.ingot || fail "a refused conversion changed the file"
expect_exit 0 ingot-convert "$MODEL" -o one.ingot --force
expect_exit 0 ingot-verify one.ingot --source "$MODEL"

# Every method, on the text and on statistics; all verify against the source.
for method in awq gptq awq+gptq; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert "$MODEL" -o "$method.ingot" --method "$method" --text "$text" \
        $few --threads 2
    expect_exit 0 ingot-verify "$method.ingot" --source "$MODEL"
done
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o again.ingot --text "$text" $few --threads 1
cmp gptq.ingot again.ingot || fail "gptq is not the default with text, or threads change it"
if command -v ingot-calib >/dev/null; then
    # shellcheck disable=SC2086
    expect_exit 0 ingot-calib "$MODEL" --text "$text" $few -o model.calib
    for method in gptq awq; do
        expect_exit 0 ingot-convert "$MODEL" -o stats.ingot --method $method --stats model.calib \
            --force
        expect_exit 0 ingot-verify stats.ingot --source "$MODEL"
    done
fi

# Widths, groups, zero points, outliers, ends, shards.
for options in "--bits 2 --group 32 --asym" "--bits 3 --group row" "--bits 8 --group 64" \
    "--bits 5 --outliers 0.01" "--embed-bits 4 --head-bits 6" "--zstd" "--sha256 --embed-bits 8"; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert "$MODEL" -o options.ingot --effort fast --force $options
    expect_exit 0 ingot-verify options.ingot --source "$MODEL"
done
expect_exit 0 ingot-convert "$MODEL" -o set.ingot --shard-size 2500000
[ ! -e set.ingot ] || fail "a sharded conversion left a single file"
expect_exit 0 ingot-verify "$(ls set-00001-of-*.ingot)" --source "$MODEL"

# A head that is not there is tied where config.json does not say otherwise, to all tools.
cp -r "$MODEL" unsaid
sed '/"tie_word_embeddings"/d' "$MODEL/config.json" >unsaid/config.json
for options in "" "--head-bits 6"; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert unsaid -o options.ingot --force $options
    expect_exit 0 ingot-verify options.ingot --source unsaid --text "$text" --windows 1 --seq-len 64
done

# A config.json of fewer layers than the checkpoint has is not the model's, to the plan either.
cp -r "$MODEL" fewer
sed 's/"num_hidden_layers": 4/"num_hidden_layers": 3/' "$MODEL/config.json" >fewer/config.json
for options in "-o fewer.ingot" --dry-run; do
    # shellcheck disable=SC2086
    expect_exit 2 ingot-convert fewer $options
    expect_error "fewer: model.layers.3."
    expect_error "config.json has 3 layers (num_hidden_layers), the checkpoint 4"
done

# A tied head that a rule keeps is the embedding; where that is quantized, a matrix of its own.
echo '{"tensors": [{"pattern": "lm_head.weight", "method": "keep"}]}' >head.json
for options in "" "--head-bits 4" "--embed-bits 4"; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert "$MODEL" -o options.ingot --force --recipe head.json $options
    expect_exit 0 ingot-verify options.ingot --source "$MODEL" --json
    case $options in --embed*) aliases=0 ;; *) aliases=1 ;; esac
    grep -c '"alias_of": "model.embed_tokens.weight"' out >found || true
    [ "$(cat found)" = $aliases ] || fail "the head with '$options': $(cat found) aliases"
done

# A recipe: rules by name, unknown keys are errors.
cat >recipe.json <<'EOF'
{"defaults": {"bits": 3, "group": 64},
 "tensors": [{"pattern": "*.down_proj.weight", "bits": 8},
             {"pattern": "model.layers.0.*", "method": "keep"}]}
EOF
expect_exit 0 ingot-convert "$MODEL" --dry-run --recipe recipe.json --group 32
grep -q 'layers.1.mlp.down_proj.weight .* 8 bits, group 32' out || fail "rule not in the plan"
grep -q 'layers.1.mlp.up_proj.weight .* 3 bits, group 32' out || fail "defaults not in the plan"
grep -q 'layers.0.mlp.up_proj.weight .* F16 ' out || fail "kept tensor not in the plan"
! grep -q 'matches no matrix' out || fail "$(cat out)"
expect_exit 0 ingot-convert "$MODEL" -o recipe.ingot --recipe recipe.json
expect_exit 0 ingot-verify recipe.ingot --source "$MODEL"
echo '{"tensors": [{"pattern": "*.dwn_proj.weight", "bits": 8}, {"pattern": "model.norm.weight", "bits": 8},
 {"pattern": "lm_head.weight", "bits": 8}]}' >idle.json
expect_exit 0 ingot-convert "$MODEL" -o recipe.ingot --recipe idle.json --force
for pattern in '*.dwn_proj.weight' model.norm.weight; do
    grep -qF "plan: a rule of the recipe matches no matrix of this model: \"$pattern\"" err || fail "$(cat err)"
done
[ "$(grep -c 'matches no matrix' err)" = 2 ] || fail "$(cat err)"
echo '{"defaults": {"method": "keep"}}' >keep.json
expect_exit 0 ingot-convert "$MODEL" -o keep.ingot --recipe keep.json
! grep -q 'bits per\|nan' out || fail "bits of quantized weights, of which there are none"
echo '{"defaults": {"bit": 3}}' >bad.json
expect_exit 2 ingot-convert "$MODEL" -o bad.ingot --recipe bad.json
expect_error 'bad.json'
expect_error '"bit"'

# A dry run writes nothing.
expect_exit 0 ingot-convert "$MODEL" --dry-run --text "$text"
grep -q 'bits per quantized weight' out || fail "the dry run shows no size"
grep -q ' as a statistics file' out || fail "the dry run shows no size of H"

# --json: every key, on success and on failure.
expect_exit 0 ingot-convert "$MODEL" -o json.ingot --json
cp out good.json
expect_exit 2 ingot-convert "$MODEL" -o json.ingot --json
for file in good.json out; do
    for key in output bytes seconds phases peak_host_bytes peak_device_bytes bits_per_weight error
    do
        grep -q "\"$key\"" "$file" || fail "$key is missing in $file"
    done
done
grep -q '"error": "E_EXISTS"' out || fail "the error has no code"
grep -q "\"bytes\": $(wc -c <json.ingot)" good.json || fail "bytes is not the size of the file"

# Contradictions, and what belongs to later versions: refused, never ignored.
while read -r options; do
    # shellcheck disable=SC2086
    expect_exit 2 ingot-convert "$MODEL" -o refused.ingot $options
    expect_error ":"
    expect_no_files refused.ingot
done <<EOF
--method gptq
--method awq+gptq
--method keep
--method rtn --effort fast
--effort best
--devices 998,999
--bits 9
--bits 1
--group 48
--text $text --stats x.calib
--stats model.calib --seq-len 64
--samples 4
--method rtn --seq-len 64
--dry-run --samples 4
--text $text --seq-len 100000
--stats none.calib
--text none.txt
--recipe none.json
--device cuda:7
--outliers 2
--shard-size 0
EOF
expect_exit 2 ingot-convert "$MODEL"
expect_error "-o"
expect_exit 2 ingot-convert "$INGOT_ROOT/tests/fixtures/tiny-llama" -o group.ingot --group 128
expect_error "larger than every row"
expect_no_files group.ingot bad.ingot

# Plain rounding has no use for a text: it is not read, still less written by the model, and the
# bytes are those without one.  One that is not there is a slip of the pen.
expect_exit 0 ingot-convert "$MODEL" -o plain.ingot --method rtn
for data in "--text $MODEL/calibration.txt" "--text @self" "--stats $MODEL/config.json"; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert "$MODEL" -o useless.ingot --method rtn --force $data
    grep -q '^plan: no method of these needs calibration data' err || fail "$data: $(cat err)"
    cmp plain.ingot useless.ingot || fail "other bytes with $data"
done
expect_exit 2 ingot-convert "$MODEL" -o useless.ingot --method rtn --force --text none.txt
expect_error none.txt
