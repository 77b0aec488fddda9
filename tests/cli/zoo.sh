# ingot-zoo: from a manifest to a shelf and a report; finished products are left alone; what was
# changed is made again; gates; a product that fails does not stop the others.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo ingot-convert ingot-verify

cp -r "$MODEL" model
cat >zoo.json <<END
{
  "shelf": "shelf",
  "models": {"demo": "model"},
  "texts": {"eval": "model/evaluation.txt"},
  "recipes": {
    "w8": {"defaults": {"method": "rtn", "bits": 8, "group": "row"}},
    "w2": {"defaults": {"method": "rtn", "bits": 2}},
    "w4": {"effort": "fast", "head_bits": 6}
  },
  "defaults": {"evaluation": "eval", "windows": 2, "gates": {"max_kld": 0.5}},
  "products": [
    {"model": "demo", "recipes": ["w8", "w2"]},
    {"model": "demo", "recipes": ["w4"], "output": "sub/four.ingot", "zstd": true}
  ],
  "devices": ["cpu"]
}
END

expect_exit 2 ingot-zoo status zoo.json
expect_error "there is no shelf yet"
expect_exit 2 ingot-zoo status zoo.json --json
for key in products states gates_failed; do
    grep -q "\"$key\": null" out || fail "no $key: $(cat out)"
done
expect_exit 1 ingot-zoo run zoo.json --jobs 2
grep -q '3 products: 3 made, 0 finished before, 0 failed, 1 over a gate' out || fail "$(cat out)"
grep -q 'demo/w2: .*over a gate: mean KL divergence' err || { cat err >&2; fail "no gate named"; }
for file in demo/w8 demo/w2 sub/four; do
    ingot-verify "shelf/$file.ingot" --source model >/dev/null || fail "$file is not valid"
done

# The plan knew what verification takes, which is more than plain rounding does.
most() { # KEY FILE...: the largest of its values
    key=$1
    shift
    sed -n "s/^ *\"$key\": \([0-9]*\),*$/\1/p" "$@" | sort -n | tail -n 1
}
taken=$(most peak_host_bytes shelf/.ingot-zoo/records/*.json)
expect_exit 0 ingot-zoo plan zoo.json --json
[ "$(grep -cE '"verify_seconds": [0-9.e-]*[1-9]' out)" = 3 ] || fail "scoring takes no time: $(cat out)"
sed '/"room"/,$d' out >rows
# Tasks take their time, too, and so does the text beside them.
cat >tasks.json <<END
{"shelf": "shelf", "models": {"demo": "model"}, "texts": {"eval": "$MODEL/evaluation.txt"},
 "recipes": {"t": {"defaults": {"method": "rtn"}}, "b": {"defaults": {"method": "rtn"}}, "e": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "demo", "recipes": ["t"], "tasks": "$MODEL/tasks.jsonl"},
  {"model": "demo", "recipes": ["e"], "evaluation": "eval"},
  {"model": "demo", "recipes": ["b"], "tasks": "$MODEL/tasks.jsonl", "evaluation": "eval"}], "devices": ["cpu"]}
END
expect_exit 0 ingot-zoo plan tasks.json --json
sed -n 's/^ *"verify_seconds": \(.*\)$/\1/p' out | tr '\n' ' ' >times
awk '{ sum = $1 + $2 - $3; exit !(NF == 3 && $1 + 0 > 1.5 * $2 && sum < 0.01 && sum > -0.01) }' times ||
    fail "tasks, text and both take $(cat times)"
planned=$(most host_bytes rows)
is_sanitized || { [ $((planned * 10)) -gt $((taken * 9)) ] && [ "$planned" -lt $((taken * 2)) ]; } ||
    fail "planned $planned bytes of memory, taken $taken"

# Of items what their choices come to, each behind its context: a multiple of the file's bytes.
awk 'BEGIN {
    for (i = 0; i < 4; i++) {
        printf "{\"context\": \"item %d:", i
        for (k = 0; k < 50; k++) printf " the old house by the sea and"
        printf "\", \"answer\": 0, \"choices\": ["
        for (k = 0; k < 30; k++) printf "%s\" number %d\"", k ? ", " : "", k
        print "]}"
    }
}' >long.jsonl
sed "s|\"[^\"]*tasks.jsonl|\"long.jsonl|; s|\"shelf\": \"shelf\"|\"shelf\": \"items\"|" tasks.json >long.json
expect_exit 0 ingot-zoo plan long.json --only demo/t --json
sed '/"room"/,$d' out >rows
planned=$(most host_bytes rows)
expect_exit 0 ingot-zoo run long.json --only demo/t
taken=$(most peak_host_bytes items/.ingot-zoo/records/*.json)
is_sanitized || { [ $((planned * 10)) -gt $((taken * 9)) ] && [ "$planned" -lt $((taken * 2)) ]; } ||
    fail "items: planned $planned bytes of memory, taken $taken"
sed 's/"answer": 0/"answer": 99/' long.jsonl >wrong.jsonl
sed 's/long.jsonl/wrong.jsonl/' long.json >wrong.json
expect_exit 2 ingot-zoo plan wrong.json --only demo/t
expect_error 'demo/t: wrong.jsonl: line 1: "answer" is not the index of a choice'

# A product that is there has no need of memory any more.
sed 's/"devices"/"limits": {"host_bytes": 1000000}, &/' long.json >small.json
expect_exit 0 ingot-zoo plan small.json --only demo/t
expect_exit 2 ingot-zoo plan small.json --only demo/e
expect_error 'of host memory, there are 1.0 MB'

# What would take less memory is told of the step that takes most: plain rounding has no samples.
cat >less.json <<END
{"shelf": "less", "models": {"demo": "model"}, "texts": {"text": "$MODEL/evaluation.txt"},
 "recipes": {"rtn": {"defaults": {"method": "rtn"}}, "gptq": {}},
 "products": [{"model": "demo", "recipes": ["rtn"], "output": "a.ingot"}, {"model": "demo", "recipes": ["gptq"], "calibration": "text"}],
 "devices": ["cpu"], "limits": {"host_bytes": 1000000, "device_bytes": 1000000}}
END
expect_exit 2 ingot-zoo plan less.json
expect_error 'there are 1.0 MB (raise limits.host_bytes)'
expect_error 'there are 1.0 MB (fewer "samples" or a smaller "seq_len" in its recipe, or raise limits.host_bytes)'
sed 's/"output": "a.ingot"/"evaluation": "text", "seq_len": 1024/' less.json >scored.json
expect_exit 2 ingot-zoo plan scored.json --only demo/rtn
expect_error 'there are 1.0 MB (a smaller "seq_len" of its evaluation, or raise limits.host_bytes)'
sed 's/"cpu"/"cuda"/; s/"host_bytes": 1000000, //' less.json >card.json
expect_exit 2 ingot-zoo plan card.json
expect_error 'limits.device_bytes allows 1.0 MB (another device, or raise it)'
expect_error 'limits.device_bytes allows 1.0 MB (fewer "samples" or a smaller "seq_len" in its recipe, another device, or raise it)'

# Texts are read whole, however few windows they give.
for i in 1 2 3 4 5 6 7 8 9 10; do cat "$MODEL/evaluation.txt" "$MODEL/calibration.txt"; done >ten.txt
cat ten.txt ten.txt ten.txt ten.txt >large.txt
cat >large.json <<END
{"shelf": "large", "models": {"demo": "model"}, "texts": {"text": "large.txt"},
 "recipes": {"few": {"samples": 2, "seq_len": 64}},
 "products": [{"model": "demo", "recipes": ["few"], "calibration": "text", "evaluation": "text", "windows": 2}],
 "devices": ["cpu"]}
END
for way in scored calibrated; do
    expect_exit 0 ingot-zoo plan large.json --json
    sed '/"room"/,$d' out >rows
    planned=$(most host_bytes rows)
    expect_exit 0 ingot-zoo run large.json
    taken=$(most peak_host_bytes large/.ingot-zoo/records/*.json)
    is_sanitized || { [ $((planned * 10)) -gt $((taken * 9)) ] && [ "$planned" -lt $((taken * 2)) ]; } ||
        fail "a text that is $way: planned $planned bytes of memory, taken $taken"
    sed -i 's/, "evaluation": "text", "windows": 2//' large.json
done

# A text that is too short to be scored on is known before anything is converted.
head -c 500 "$MODEL/evaluation.txt" >short.txt
sed 's|"shelf": "shelf"|"shelf": "unscored"|; s|model/evaluation.txt|short.txt|' zoo.json >short.json
expect_exit 2 ingot-zoo plan short.json
expect_error "demo/w8: short.txt: the text has"
expect_error "one window of the evaluation needs 512"
expect_exit 2 ingot-zoo run short.json
[ ! -e unscored/demo ] || fail "it was converted"
sed -i 's|"windows": 2|"windows": 1, "seq_len": 64|' short.json
expect_exit 0 ingot-zoo plan short.json

# Nothing to do: nothing is touched.
touch stamp
expect_exit 1 ingot-zoo run zoo.json --json
grep -q '"finished_before": 3' out || fail "$(cat out)"
[ -z "$(find shelf -newer stamp -name '*.ingot')" ] || fail "a finished product was made again"

# A touched model with the same bytes is the same model, also where a tied head has bits of its own;
# another byte is another.
touch -d '2031-01-01' model/model.safetensors
expect_exit 2 ingot-zoo status zoo.json
grep -q 'demo/w8 *stale .*files of the model were written since' out || fail "$(cat out)"
expect_exit 1 ingot-zoo run zoo.json
grep -q '0 made, 3 finished before' out || fail "$(cat out)"
printf 'x' | dd of=model/model.safetensors bs=1 seek=100000 conv=notrunc 2>/dev/null
expect_exit 1 ingot-zoo run zoo.json --only demo/w2 --only demo/w8
grep -q '2 made, 0 finished before' out || fail "$(cat out)"

# A gate that is moved is judged on what was measured; another text is evaluated anew.
sed -i 's/"max_kld": 0.5/"max_kld": 50/' zoo.json
expect_exit 0 ingot-zoo run zoo.json
grep -q '1 made, 2 finished before' out || fail "$(cat out)"
sed -i 's/"windows": 2/"windows": 1/' zoo.json
touch stamp
expect_exit 0 ingot-zoo run zoo.json
[ -z "$(find shelf -newer stamp -name '*.ingot')" ] || fail "another text made a product again"
grep -q '3 made' out || fail "$(cat out)"

# A product that cannot be made: its error is told, the others are made.
rm shelf/demo/w8.ingot
sed -i 's/"effort": "fast"/"effort": "fast", "tensors": [{"pattern": "*", "group": 128, "bits": 3}]/' zoo.json
mv model/model.safetensors model/keep
cp -r model other
mv other/keep other/model.safetensors
sed -i 's|"models": {|&"other": "other", |; s|"products": \[|&{"model": "other", "recipes": ["w8"]},|' zoo.json
expect_exit 2 ingot-zoo run zoo.json
grep -q 'demo/w8: failed: .*no .*safetensors' err || { cat err >&2; fail "no reason"; }
[ -e shelf/other/w8.ingot ] || fail "a failure stopped another product"
expect_exit 2 ingot-zoo status zoo.json --json
grep -q '"failed": 3' out || fail "$(cat out)"
mv model/keep model/model.safetensors
expect_exit 0 ingot-zoo run zoo.json

# --jobs and --json go with every subcommand.
for command in plan run status report verify slurm; do
    expect_exit 0 ingot-zoo $command zoo.json --jobs 2 --json
done

# Slips of the pen: said before anything is done.
expect_exit 2 ingot-zoo status zoo.json --tensors
expect_error "--tensors is an option of plan, not of status"
expect_exit 2 ingot-zoo run zoo.json --device gpu
expect_error "unknown device 'gpu'"
expect_exit 2 ingot-zoo zoo.json
expect_error "the first word must say what to do"
expect_exit 2 ingot-zoo run
expect_error "ingot-zoo: MANIFEST.json is missing"
expect_exit 2 ingot-zoo run ""
expect_error "ingot-zoo: MANIFEST.json is empty"

expect_exit 0 ingot-zoo report zoo.json
[ "$(wc -l <shelf/report.csv)" = 5 ] || fail "report.csv has $(wc -l <shelf/report.csv) lines"
grep -q '<svg' shelf/report.html || fail "no chart"
! grep -qiE '(src|href)=|@import|url\(' shelf/report.html || fail "the page fetches something"

# Statistics that two products share take time and room once, and none when they are there.
cat >shared.json <<END
{"shelf": "sharing", "models": {"demo": "other"}, "texts": {"cal": "$MODEL/calibration.txt"},
 "recipes": {"a": {"samples": 48, "seq_len": 512}, "b": {"defaults": {"bits": 3}, "samples": 48, "seq_len": 512}},
 "products": [{"model": "demo", "recipes": ["a", "b"], "calibration": "cal", "statistics": true}],
 "devices": ["cpu"]}
END
expect_exit 0 ingot-zoo plan shared.json --json
[ "$(grep -cE '"statistics_seconds": [0-9.e-]*[1-9]' out)" = 1 ] || fail "not one of two: $(cat out)"
grep -q '"statistics_seconds": null' out || fail "both of two: $(cat out)"
[ "$(grep -c '"verify_seconds": null' out)" = 2 ] || fail "nothing is scored: $(cat out)"
host=$(sed -n 's/^   "host_bytes": \([0-9]*\),$/\1/p' out | tail -n 1)
disk=$(sed -n 's/^ "disk_bytes": \([0-9]*\),$/\1/p' out)
expect_exit 0 ingot-zoo run shared.json --until statistics
grep -q ', 2 have their statistics; ' out || fail "$(cat out)"
sed 's/"recipes": {/"recipes": {"c": {"defaults": {"method": "rtn"}}, /; s/"statistics": true}\]/"statistics": true}, {"model": "demo", "recipes": ["c"]}]/' shared.json >third.json
expect_exit 0 ingot-zoo run third.json --until statistics
grep -q '^3 products: .*, 2 have their statistics; ' out || fail "$(cat out)"
expect_exit 0 ingot-zoo plan shared.json --json
[ "$(grep -c '"statistics_seconds": null' out)" = 2 ] || fail "they are there already: $(cat out)"
less=$((disk - $(sed -n 's/^ "disk_bytes": \([0-9]*\),$/\1/p' out)))
file=$(cat sharing/.ingot-zoo/statistics/*.calib | wc -c)
[ $less -gt $((file * 9 / 10)) ] && [ $less -le "$file" ] || fail "statistics of $file bytes were planned with $less"
less=$((host - $(sed -n 's/^   "host_bytes": \([0-9]*\),$/\1/p' out | tail -n 1)))
[ $less -gt $((48 * 512 * 256 * 4)) ] || fail "their hidden states were planned with $less bytes"

# A product that cannot be planned has the keys of one that can.
mkdir strange
sed 's/"llama"/"banana"/' "$MODEL/config.json" >strange/config.json
cat >problem.json <<END
{"shelf": "none", "models": {"demo": "$MODEL", "strange": "strange"}, "recipes": {"a": {}},
 "products": [{"model": "strange", "recipes": ["a"]}, {"model": "demo", "recipes": ["a"]}], "devices": ["cpu"]}
END
expect_exit 2 ingot-zoo plan problem.json --json
for key in bits_per_weight calibration cards device_bytes device_least_bytes disk_bytes file_bytes finished \
    has_weights host_bytes output parameters problem seconds source_bytes statistics_seconds tensors \
    verify_seconds; do
    [ "$(grep -c "^   \"$key\": " out)" = 2 ] || fail "$key is not in every product: $(cat out)"
done
grep -q "^   \"problem\": \".*'banana' is not known" out || fail "no reason: $(cat out)"
expect_exit 2 ingot-zoo plan problem.json
grep -q '^strange/a *cannot be made' out && grep -q '^demo/a .* MB' out || fail "$(cat out)"

# Of a text that the model writes: all of its weights, keys and values of 48 sequences.
rm -r sharing
sed 's|"cal": "[^"]*"|"cal": "@self"|' shared.json >self.json
expect_exit 0 ingot-zoo plan self.json --json
host=$(sed -n 's/^   "host_bytes": \([0-9]*\),$/\1/p' out | tail -n 1)
[ "$host" -gt $(($(wc -c <other/model.safetensors) + 48 * 512 * 4 * 2 * 128 * 4)) ] ||
    fail "a text that the model writes was planned with $host bytes"

# Products that have no use for a text are made without it, and without statistics of it.
cat >plain.json <<END
{"shelf": "plain", "models": {"demo": "other"}, "texts": {"cal": "@self"},
 "recipes": {"rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "demo", "recipes": ["rtn"], "calibration": "cal", "statistics": true}],
 "devices": ["cpu"]}
END
expect_exit 0 ingot-zoo plan plain.json --json
grep -q '"calibration": null' out && grep -q '"statistics_seconds": null' out || fail "$(cat out)"
expect_exit 0 ingot-zoo run plain.json
grep -q '^1 products: 1 made' out || fail "$(cat out)"
[ -z "$(ls plain/.ingot-zoo/statistics)" ] || fail "statistics were made for plain rounding"

# What no product uses any more goes, whatever its product became; the rest of the folder stays.
expect_exit 0 ingot-zoo run shared.json --until statistics
statistics=sharing/.ingot-zoo/statistics
before=$(ls $statistics)
for name in $before.partial $(printf '%032d' 7).sens notes.txt $(printf '%032d' 7).calib.old; do
    echo x >"$statistics/$name"
done
mv $statistics/$before.partial .
sed 's/"samples": 48/"samples": 40/g' shared.json >fewer.json
expect_exit 0 ingot-zoo plan shared.json --json
[ "$(grep -c '"file": ".ingot-zoo/statistics/' out)" = 1 ] || fail "one is unused: $(cat out)"
expect_exit 0 ingot-zoo plan fewer.json
grep -q '^2 shared files (.*) that no product uses any more' out || fail "$(cat out)"
mv other gone
expect_exit 2 ingot-zoo plan fewer.json
mv gone other
mv $before.partial $statistics
expect_exit 0 ingot-zoo run fewer.json --until statistics --only demo/a --json
[ "$(grep -c '"file": ".ingot-zoo/statistics/' out)" = 3 ] || fail "$(cat out)"
grep -q "$before: no product of the manifest uses it: removed" err || fail "$(cat err)"
left=$(ls $statistics | grep -v '\.calib$' | tr '\n' ' ')
[ "$left" = "00000000000000000000000000000007.calib.old notes.txt " ] || fail "there is $left"
[ "$(ls $statistics/*.calib | wc -l)" = 1 ] || fail "$(ls $statistics)"
[ ! -e "$statistics/$before" ] || fail "it is still there"

# Statistics and tables that are damaged are made anew, where they would fail every run to come.
cat >spoiled.json <<END
{"shelf": "spoiled", "models": {"demo": "other"}, "texts": {"cal": "$MODEL/calibration.txt"},
 "recipes": {"a": {"samples": 3, "seq_len": 64}, "t": {"target_bpw": 3.5, "samples": 3, "seq_len": 64}},
 "products": [{"model": "demo", "recipes": ["a"], "calibration": "cal", "statistics": true},
  {"model": "demo", "recipes": ["t"], "calibration": "cal"}], "devices": ["cpu"]}
END
expect_exit 0 ingot-zoo run spoiled.json --until statistics
printf 'xx' | dd of="$(ls spoiled/.ingot-zoo/statistics/*.calib)" bs=1 seek=300000 conv=notrunc 2>/dev/null
expect_exit 0 ingot-zoo run spoiled.json
grep -q '\.calib: damaged or gone: made anew' err || fail "$(cat err)"
table=$(ls spoiled/.ingot-zoo/statistics/*.sens)
printf 'xx' | dd of="$table" bs=1 seek=100 conv=notrunc 2>/dev/null
sed -i 's/3\.5/4.5/' spoiled.json
expect_exit 0 ingot-zoo run spoiled.json
grep -q '\.sens: damaged or gone: made anew' err || fail "$(cat err)"
! grep -q calib: err || fail "whole statistics were made anew: $(cat err)"
