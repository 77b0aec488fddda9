# ingot-run: text, --json, seeds, and what it refuses.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-run python3

prompt="The old captain looked at the sea and"
keys="decode_tokens_per_second error message prompt_tokens_per_second saturated text token_ids tokens"

# has_keys FILE ERROR: one object with every key, and that error.
has_keys() {
    python3 - "$1" "$2" "$keys" <<'EOF'
import json, sys
o = json.load(open(sys.argv[1]))
assert sorted(o) == sys.argv[3].split(), sorted(o)
assert (o["error"] or "null") == sys.argv[2], o["error"]
if o["error"]:
    assert all(v is None for k, v in o.items() if k not in ("error", "message")), o
    assert o["message"], o
else:
    assert o["message"] is None, o
    assert o["tokens"] == len(o["token_ids"]), o
    assert o["prompt_tokens_per_second"] > 0, o
EOF
}

# Greedy text is known: transformers gives the same.
expect_exit 0 ingot-run "$MODEL" --prompt "$prompt" -n 8
[ "$(cat out)" = " saw the sea." ] || [ "$(head -n 1 out)" = " saw the sea." ] ||
    fail "greedy text: $(cat out)"
grep -q '^prompt: 8 tokens, ' err || fail "no rates on stderr"
cp out greedy

expect_exit 0 ingot-run "$MODEL" --prompt "$prompt" -n 8 --json --threads 1
[ ! -s err ] || fail "--json wrote to stderr: $(cat err)"
has_keys out null
python3 - <<'EOF'
import json
text = json.load(open("out"))["text"]
assert text + "\n" == open("greedy").read(), text
EOF

# A terminal is shown how far loading is; where errors go to one, the text is as it was.
if command -v script >/dev/null; then
    for settings in --json ""; do
        TERM=xterm script -qec "ingot-run '$MODEL' -p '$prompt' -n 8 $settings --device cpu >text" \
            /dev/null >out 2>err </dev/null || fail "ingot-run on a terminal: $(cat out)"
        grep -aqE 'loading.* 0%  0/[1-9][0-9]* MB' out || fail "no progress: $(cat out)"
        ! grep -q loading text || fail "progress in the text"
    done
    cmp text greedy || fail "another text beside a terminal"
else
    echo "SKIP: script is not there, which makes a terminal"
fi

# The same seed gives the same text, another one another.
ingot-run "$MODEL" -p "$prompt" -n 24 -t 1 -s 5 >a 2>err
ingot-run "$MODEL" -p "$prompt" -n 24 -t 1 -s 5 --threads 1 >b 2>err
ingot-run "$MODEL" -p "$prompt" -n 24 -t 1 -s 6 >c 2>err
cmp -s a b || fail "the same seed gave another text"
! cmp -s a c || fail "another seed gave the same text"

# An end that no token of the vocabulary is never comes: the model is taken, and that said.
mkdir endless
cp "$MODEL"/* endless
chmod -R u+w endless
for id in 4096 -1; do
    echo "{\"eos_token_id\": $id}" >endless/generation_config.json
    expect_exit 0 ingot-run endless --prompt "$prompt" -n 8
    cmp out greedy || fail "the text is another one"
    grep -q '^warning: eos_token_id is no token' err || fail "no word of the end: $(cat err)"
done
echo '{"eos_token_id": [4096, 0]}' >endless/generation_config.json
expect_exit 0 ingot-run endless --prompt "$prompt" -n 8
! grep -q warning err || fail "one of two ends that may come, and a warning"

# -n beyond the context ends at the context.
expect_exit 0 ingot-run "$MODEL" --prompt "$prompt" -n 100000 --json --temperature 1
python3 - <<'EOF'
import json
assert json.load(open("out"))["tokens"] <= 512 - 8
EOF

# refuse CODE TEXT ARGUMENT...: exit 2, the message, and the object of --json with that code.
refuse() {
    error=$1 text=$2
    shift 2
    expect_exit 2 ingot-run "$@"
    expect_error "$text"
    [ ! -s out ] || fail "a failure wrote to stdout"
    expect_exit 2 ingot-run "$@" --json
    expect_error "$text"
    has_keys out "$error"
}
long=$(awk 'BEGIN { for (i = 0; i < 600; i++) printf "word " }')
refuse E_USAGE "there is no prompt" "$MODEL"
refuse E_USAGE "the value of --prompt is empty" "$MODEL" --prompt ""
refuse E_USAGE "the model's context" "$MODEL" --prompt "$long"
refuse E_USAGE "--tokens" "$MODEL" --prompt x -n 0
refuse E_USAGE "--temperature" "$MODEL" --prompt x -t -1
refuse E_USAGE "--seed" "$MODEL" --prompt x --seed 1.5
refuse E_USAGE "abacus" "$MODEL" --prompt x --device abacus
refuse E_USAGE "unknown device" "$MODEL" --prompt x --device "cuda: 1"
refuse E_DEVICE "cuda:99" "$MODEL" --prompt x --device cuda:99
refuse E_NOT_FOUND "no/such/model" no/such/model --prompt x

# The layers that config.json counts are not the model where the checkpoint has more.
cp -r "$MODEL" fewer
chmod -R u+w fewer
sed 's/"num_hidden_layers": 4/"num_hidden_layers": 3/' "$MODEL/config.json" >fewer/config.json
refuse E_INPUT "has 3 layers (num_hidden_layers), the checkpoint 4" fewer --prompt x -n 1

# --prompt-file: the file is the prompt, but for the end of its last line.
printf '%s' "$prompt" >prompt.txt
printf '%s\n' "$prompt" >line.txt
printf '%s\r\n' "$prompt" >dos.txt
for file in prompt.txt line.txt dos.txt; do
    expect_exit 0 ingot-run "$MODEL" --prompt-file $file -n 8
    cmp out greedy || fail "$file: another text than that of --prompt"
    ingot-run "$MODEL" --prompt-file - -n 8 <$file >out 2>err || fail "a prompt on standard input: $(cat err)"
    cmp out greedy || fail "$file on standard input: another text than that of --prompt"
done
expect_exit 0 ingot-run "$MODEL" --prompt "$prompt
" -n 8
mv out second
printf '%s\n\n' "$prompt" >lines.txt
expect_exit 0 ingot-run "$MODEL" --prompt-file lines.txt -n 8
cmp out second || fail "more than one newline was dropped"
awk 'BEGIN { for (i = 0; i < 30000; i++) printf "word " }' >long.txt # more than an argument may have
refuse E_USAGE "the model's context" "$MODEL" --prompt-file long.txt
refuse E_USAGE "both --prompt and --prompt-file" "$MODEL" --prompt-file line.txt --prompt x
refuse E_NOT_FOUND "no/such.txt: cannot open" "$MODEL" --prompt-file no/such.txt
refuse E_INPUT "is a folder, not a file" "$MODEL" --prompt-file endless
: >empty.txt
echo >newline.txt
printf 'caf\351\n' >latin.txt
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n' >pointer.txt
refuse E_INPUT "empty.txt: the prompt is empty" "$MODEL" --prompt-file empty.txt
refuse E_INPUT "newline.txt: the prompt is empty" "$MODEL" --prompt-file newline.txt
refuse E_INPUT "standard input: the prompt is empty" "$MODEL" --prompt-file -
refuse E_INPUT "latin.txt: is not UTF-8 at byte 3" "$MODEL" --prompt-file latin.txt
refuse E_INPUT "--prompt: is not UTF-8 at byte 3" "$MODEL" --prompt "$(cat latin.txt)"
refuse E_INPUT "git lfs pull" "$MODEL" --prompt-file pointer.txt
truncate -s 67108865 large.txt
refuse E_INPUT "more than the limit of 67108864" "$MODEL" --prompt-file large.txt
code=0
ingot-run "$MODEL" --prompt-file - <large.txt >out 2>err || code=$?
[ "$code" = 2 ] || fail "a large prompt on standard input: exit code $code"
expect_error "standard input: is longer than the limit of 67108864 bytes"
code=0
ingot-run "$MODEL" --prompt-file - <&- >out 2>err || code=$?
[ "$code" = 2 ] || fail "no standard input: exit code $code"
expect_error "standard input: "
# One that waits for its prompt is interrupted.
mkfifo pipe
sleep 60 >pipe &
writer=$!
ingot-run "$MODEL" --prompt-file - --json <pipe >out 2>err &
sleep 0.5
kill -TERM $!
code=0
wait $! || code=$?
kill $writer
[ "$code" = 2 ] || fail "interrupted before its prompt: exit code $code"
has_keys out E_INTERRUPTED

# A file of a checkpoint is no container; its folder is what to name.
head -c 40 "$MODEL/model.safetensors" >alone.safetensors
for file in "$MODEL/model.safetensors" alone.safetensors "$MODEL/config.json"; do
    expect_exit 1 ingot-run "$file" --prompt x
    expect_error "(this is a file of a checkpoint: name the folder that holds it and config.json)"
done
echo '{"no": "checkpoint"}' >alone.json
expect_exit 1 ingot-run alone.json --prompt x --json
expect_error "(copy or download the file again)"
has_keys out E_TOO_SHORT

# The text cannot be written.
code=0
ingot-run "$MODEL" --prompt "$prompt" -n 4 >/dev/full 2>err || code=$?
[ "$code" = 2 ] || fail "a full disk under stdout: exit code $code"
expect_error "could not be written"
code=0
ingot-run "$MODEL" --prompt "$prompt" -n 4 --json >/dev/full 2>err || code=$?
[ "$code" = 2 ] || fail "a full disk under stdout with --json: exit code $code"
