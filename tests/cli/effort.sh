# ingot-convert --effort fast and best: what they need, what they gain, what their bytes depend on.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify ingot-inspect

text=$MODEL/calibration.txt
few="--samples 20 --seq-len 64"
less="--samples 10 --seq-len 40"

# fast: rounding with searched scales, weighted by the activations where there is text.
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o fast.ingot --effort fast --text "$text" $few --threads 2
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o again.ingot --effort fast --text "$text" $few --threads 1
cmp fast.ingot again.ingot || fail "threads change the bytes of --effort fast"
expect_exit 0 ingot-verify fast.ingot --source "$MODEL" --json
python3 - out <<'EOF' || fail "--effort fast is not better than plain rounding"
import json, sys
tensors = [t for t in json.load(open(sys.argv[1]))["tensors"] if t["method"] == "searched"]
assert len(tensors) == 28, len(tensors)
assert all(t["output_error"] < 0.95 * t["output_error_rtn"] for t in tensors)
EOF
expect_exit 0 ingot-convert "$MODEL" -o plain.ingot --effort fast
cmp -s fast.ingot plain.ingot && fail "--effort fast does not look at the text"

# best: a few matrices of one block, so that it takes seconds.
cat >recipe.json <<'EOF'
{"effort": "best",
 "tensors": [{"pattern": "model.layers.*", "method": "keep"},
             {"pattern": "model.layers.1.self_attn.*", "method": "searched", "bits": 3},
             {"pattern": "model.layers.1.mlp.down_proj.weight", "method": "rtn"}]}
EOF
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o best.ingot --recipe recipe.json --text "$text" $less \
    --threads 2 --json
cp out best.json
expect_exit 0 ingot-verify best.ingot --source "$MODEL"
python3 - best.json <<'EOF' || fail "tuning is not reported, or gains nothing"
import json, sys
report = json.load(open(sys.argv[1]))
before, after = zip(*((b["before"], b["after"]) for b in report["tuning"]))
assert before[0] == before[2] == before[3] == 0, before
assert 0 < after[1] < 0.98 * before[1], (before, after)
assert 0 < report["tuning"][1]["steps"] <= 100
assert report["phases"]["tune"] > 0 and report["phases"]["distill"] > 0
assert report["phase_device_bytes"].keys() == report["phases"].keys()
distilled = report["distillation"]
assert 0 < distilled["after"] <= distilled["before"] and 0 <= distilled["steps"] <= 200, distilled
EOF
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o one.ingot --recipe recipe.json --text "$text" $less --threads 1
cmp best.ingot one.ingot || fail "threads change the bytes of --effort best"
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o seed.ingot --recipe recipe.json --text "$text" $less --seed 1
expect_exit 0 ingot-inspect best.ingot --compare seed.ingot
cmp -s best.ingot seed.ingot && fail "the seed changes nothing"

# What cannot be tuned is refused.
while read -r options; do
    # shellcheck disable=SC2086
    expect_exit 2 ingot-convert "$MODEL" -o refused.ingot --effort best $options
    expect_error "effort best"
    expect_no_files refused.ingot
done <<EOF
--bits 4
--method rtn --text $text $few
--method awq --text $text $few
--text $text --samples 1
EOF

# A text that the model writes: repeatable, by the seed, recorded.
own="--text @self --samples 9 --seq-len 24 --effort fast"
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o self.ingot $own --threads 2
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o twice.ingot $own --threads 1
cmp self.ingot twice.ingot || fail "threads change the text that the model writes"
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o twice.ingot $own --seed 5 --force
expect_exit 0 ingot-inspect self.ingot
grep -q "calibration.kind *self" out || fail "the kind of text is not recorded"
first=$(sed -n 's/.*calibration.text_digest *//p' out)
expect_exit 0 ingot-inspect twice.ingot
[ "$first" != "$(sed -n 's/.*calibration.text_digest *//p' out)" ] || fail "the seed writes no other text"
expect_exit 2 ingot-convert "$MODEL" -o mixed.ingot --text @self --text "$text"
expect_error "stands alone"
