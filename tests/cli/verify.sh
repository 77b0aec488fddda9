# ingot-verify: verdicts, exit codes and the JSON object, on a container of the shipped model.
. "$INGOT_ROOT/tests/lib.sh"

ingot-convert "$MODEL" -o model.ingot >/dev/null 2>&1 || fail "conversion failed"
TEXT=$MODEL/evaluation.txt

# json KEY VALUE: the last output has it, at the top level (one space of indentation).
json() {
    grep -qE "^ \"$1\": $2,?\$" out || { grep -E "^ \"(valid|error|$1)" out >&2; fail "$1 is not $2"; }
}

# flip FILE OFFSET: inverts the byte there.
flip() {
    byte=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    # shellcheck disable=SC2059
    printf "\\$(printf '%03o' $((255 - byte)))" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}

# ---- valid ----
expect_exit 0 ingot-verify model.ingot
grep -q '^verdict     valid$' out || fail "no verdict"
grep -q 'every byte accounted for' out || fail "no full check"
expect_exit 0 ingot-verify --quick model.ingot --json
json valid true
json level '"quick"'
json error null
json gates_passed null
json perplexity null
expect_exit 0 ingot-verify model.ingot --source "$MODEL" --json
json valid true
json source_equal true
json source_failures 0
json bits_per_weight 4.125
[ ! -s err ] || fail "progress where there is no terminal"

# Everything that is unlike the source is named, files behind tensors too.
cp -r "$MODEL" unlike
chmod -R u+w unlike
printf 'xx' | dd of=unlike/model.safetensors bs=1 seek=100000 conv=notrunc 2>/dev/null
echo '{}' >unlike/added_tokens.json
echo '{}' >unlike/generation_config.json
expect_exit 1 ingot-verify model.ingot --source unlike --html unlike.html
grep -q "^source  *NOT from unlike: 3 differences$" out || fail "$(cat out)"
for what in 'model.embed_tokens.weight: the source tensor has digest' \
    "differs from the source in the file 'generation_config.json'" "lacks the file 'added_tokens.json'"; do
    grep -q "^            .*$what" out || fail "nothing is said of $what: $(cat out)"
    grep -q "$(echo "$what" | sed "s/'/\&#39;/g")" unlike.html || fail "nothing on the page of $what"
done
expect_exit 1 ingot-verify model.ingot --source unlike --json
json source_failures 3
[ "$(grep -cE '^   "file": ("added_tokens.json"|"generation_config.json"|null),$' out)" = 3 ] || fail "$(cat out)"
grep -q '^   "tensor": "model.embed_tokens.weight"$' out || fail "$(cat out)"

# ---- text and gates ----
expect_exit 0 ingot-verify model.ingot --source "$MODEL" --text "$TEXT" --windows 2 --seq-len 128 \
    --max-ppl-ratio 3 --max-kld 2 --json --threads 1
json gates_passed true
json windows 2
json positions 254
grep -E '"(perplexity|kld_mean|kld_p99|top1|ppl_ratio)"' out >one
expect_exit 0 ingot-verify model.ingot --source "$MODEL" --text "$TEXT" --windows 2 --seq-len 128 \
    --max-ppl-ratio 3 --max-kld 2 --json --threads 2
grep -E '"(perplexity|kld_mean|kld_p99|top1|ppl_ratio)"' out >two
cmp -s one two || fail "figures depend on the number of threads"
expect_exit 1 ingot-verify model.ingot --source "$MODEL" --text "$TEXT" --windows 2 --seq-len 128 \
    --max-ppl-ratio 1.0001 --json
json valid true
json gates_passed false
json error '"E_GATE"'
expect_error "over the gate"
expect_exit 1 ingot-verify model.ingot --source "$MODEL" --text "$TEXT" --windows 2 --seq-len 128 \
    --max-kld 0.00001
grep -q 'NOT MET' out || fail "the gate is not reported"
expect_exit 0 ingot-verify model.ingot --text "$TEXT" --windows 1 --seq-len 513
grep -q 'longer than the model.s context of 512' err || fail "windows beyond the context without a word"
expect_exit 0 ingot-verify model.ingot --text "$TEXT" --windows 1 --seq-len 64 --json
[ ! -s err ] || fail "a warning about a window of 64: $(cat err)"
json source_perplexity null
json kld_mean null

# ---- another source ----
cp -r "$MODEL" other
chmod -R u+w other
size=$(wc -c <other/model.safetensors)
flip other/model.safetensors $((size - 3001))
expect_exit 1 ingot-verify model.ingot --source other --json
json valid false
json source_equal false
json error '"E_SOURCE"'
grep -q '^ "error_tensor": "model\.' out || fail "the tensor is not named"
expect_error "digest"
cp -f "$MODEL/model.safetensors" other/model.safetensors
printf ' ' >>other/tokenizer_config.json
expect_exit 1 ingot-verify model.ingot --source other
expect_error "tokenizer_config.json"

# ---- corrupt ----
cp model.ingot bad.ingot
size=$(wc -c <bad.ingot)
flip bad.ingot $((size - 70000))
expect_exit 1 ingot-verify bad.ingot --json
json valid false
json error '"E_CHUNK_DIGEST"'
expect_exit 0 ingot-verify bad.ingot --quick
expect_exit 1 ingot-verify bad.ingot --quick --source "$MODEL"
cp model.ingot bad.ingot
flip bad.ingot 200
expect_exit 1 ingot-verify bad.ingot --quick --json
json valid false
json bytes null
json tensors null
head -c 1000000 model.ingot >bad.ingot
expect_exit 1 ingot-verify bad.ingot --json
json error '"E_FILE_SIZE"'
: >empty
expect_exit 1 ingot-verify empty --json
json error '"E_TOO_SHORT"'
expect_exit 1 ingot-verify "$MODEL/config.json" --json
json error '"E_MAGIC"'

# What a clone without Git LFS has in the place of its large files: a text of less than 160 bytes.
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 4000000\n' 0 >pointer.ingot
for tool in "ingot-verify --json" ingot-inspect "ingot-run --prompt x"; do
    # shellcheck disable=SC2086
    expect_exit 1 $tool pointer.ingot
    expect_error "(it is a pointer of Git LFS: git lfs pull, in the folder of the clone)"
done
expect_exit 1 ingot-verify pointer.ingot --json
json error '"E_TOO_SHORT"'
# Other files that one may take for a container say what they are.
printf 'GGUF%0200d' 0 >other.file
expect_exit 1 ingot-verify other.file
expect_error "(it is a GGUF file: ingot-convert makes a container of the checkpoint)"
printf 'PK\003\004%0200d' 0 >other.file
expect_exit 1 ingot-verify other.file
expect_error "(it is a zip archive, such as PyTorch saves: "
expect_exit 1 ingot-verify "$MODEL/model.safetensors"
expect_error "(it is a safetensors file: ingot-convert makes a container of its folder)"
head -c 4096 /dev/zero >other.file
expect_exit 1 ingot-verify other.file
expect_error "(it begins with zeros: copy or download the file again)"
expect_exit 2 ingot-verify model.ingot --text pointer.ingot --json
json error '"E_INPUT"'
expect_error "git lfs pull"

# ---- could not run ----
expect_exit 2 ingot-verify missing.ingot --json
json error '"E_NOT_FOUND"'
json valid null
expect_exit 2 ingot-verify model.ingot --device banana
expect_error "unknown device"
expect_exit 2 ingot-verify . --json
json valid null
expect_exit 2 ingot-verify model.ingot --text "$TEXT" --device cuda:99 --json
json error '"E_DEVICE"'
json valid null # told before anything is checked
expect_exit 2 ingot-verify model.ingot --text missing.txt --json
json error '"E_NOT_FOUND"'
expect_error "missing.txt"
expect_exit 2 ingot-verify model.ingot --source missing --json
expect_error "missing"
mkdir part
cp "$MODEL/config.json" part
expect_exit 2 ingot-verify model.ingot --source part --json
expect_error "part: there is no model.safetensors"
json root null # told before anything is checked
expect_exit 2 ingot-verify model.ingot --max-kld 1 --source "$MODEL" --json
json error '"E_USAGE"'
expect_error "--text"
expect_exit 2 ingot-verify model.ingot --max-kld 1 --text "$TEXT" --json
expect_error "--source"
expect_exit 2 ingot-verify model.ingot --max-ppl-ratio 1 --text "$TEXT"
expect_error "--source"
expect_exit 2 ingot-verify model.ingot --max-kld=-1 --json
json error '"E_USAGE"'
expect_exit 2 ingot-verify --json
json error '"E_USAGE"'
json file null
expect_exit 2 ingot-verify model.ingot --no-such-option --json
json error '"E_USAGE"'
expect_exit 2 env INGOT_TEST_FAIL_ALLOC=1 ingot-verify model.ingot --json
json error '"E_NO_MEMORY"'

# ---- a text or items that give nothing to score: told before the full check, which would say no ----
cp model.ingot bad.ingot
flip bad.ingot $((size - 70000))
printf 'short' >short.txt
for text in short.txt empty; do
    expect_exit 2 ingot-verify bad.ingot --text $text --json
    json valid null
    json error '"E_INPUT"'
    expect_error "$text: the text "
done
echo '{"context": "", "choices": ["a", "b"], "answer": 0}' >items.jsonl
expect_exit 2 ingot-verify bad.ingot --tasks items.jsonl --json
expect_error "items.jsonl: line 1"
{
    printf '{"context": "a", "choices": ["b", "'
    yes ab | head -n 2000 | tr -d '\n'
    echo '"], "answer": 0}'
} >items.jsonl
expect_exit 2 ingot-verify bad.ingot --tasks items.jsonl --json
json valid null
expect_error "a choice alone is as long as the context"
expect_exit 0 ingot-calib "$MODEL" --text "$TEXT" -o model.calib --samples 2 --seq-len 64
flip model.calib $(($(wc -c <model.calib) - 70000))
expect_exit 2 ingot-verify model.calib --text "$TEXT" --json
json valid null
expect_error "name a model"

# ---- page ----
echo old >report.html
expect_exit 0 ingot-verify model.ingot --source "$MODEL" --html report.html
grep -q '</html>' report.html || fail "the page is not whole"
if grep -qE '<script|(src|href)=' report.html; then
    fail "the page fetches something"
fi
expect_exit 1 ingot-verify model.ingot --source other --html report.html
grep -q 'not valid' report.html || fail "the page does not say that the container is not valid"
# full ARGUMENT...: the page does not fit on the disk.
full() {
    INGOT_TEST_FAIL_WRITE=1 ingot-verify "$@" --html report.html --json
}
expect_exit 2 full model.ingot
expect_error "report.html"
json error '"E_NO_SPACE"'
expect_exit 1 full model.ingot --source other
expect_error "report.html"
json error '"E_SOURCE"'
expect_exit 2 ingot-verify model.ingot --html missing/report.html
expect_error "missing/report.html"
expect_no_files missing/report.html
