# Broken checkpoints, texts and settings: one clear error, exit 2, no file.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-calib ingot-run ingot-verify python3

# fresh: a copy of the model to be broken, in ./model.
fresh() {
    rm -rf model
    cp -r "$MODEL" model
    chmod -R u+w model
}

# refused TEXT...: a conversion of ./model fails, and the error mentions every TEXT.
refused() {
    expect_exit 2 ingot-convert model -o out.ingot --method rtn
    for text in "$@"; do expect_error "$text"; done
    [ "$(grep -c '^ingot-convert: ' err)" = 1 ] || { cat err >&2; fail "not one error"; }
    expect_no_files out.ingot
}

# header EXPRESSION: edits the header of model/model.safetensors with sed, keeping its length.
header() {
    file=model/model.safetensors
    length=$(od -An -t u8 -N 8 "$file" | tr -d ' ')
    dd if="$file" bs=1 skip=8 count="$length" status=none >header.old
    sed "$1" header.old >header.new
    cmp -s header.old header.new && fail "the edit changed nothing: $1"
    [ "$(wc -c <header.new)" = "$length" ] || fail "the edit changed the length: $1"
    dd if=header.new of="$file" bs=1 seek=8 conv=notrunc status=none
}

# bytes OFFSET ESCAPES: overwrites bytes of model/model.safetensors.
bytes() {
    # shellcheck disable=SC2059
    printf "$2" | dd of=model/model.safetensors bs=1 seek="$1" conv=notrunc status=none
}

rm -rf model
refused model

# A folder that may not be gone into is there, and it is not said that it lacks a file.
plain=
if [ "$(id -u)" = 0 ]; then
    plain="setpriv --bounding-set=-all --inh-caps=-all"
    $plain true 2>err || plain=
fi
fresh
chmod 0 model
if [ -n "$plain" ] || [ "$(id -u)" != 0 ]; then
    # shellcheck disable=SC2086
    expect_exit 2 $plain ingot-convert model -o out.ingot --json
    expect_error "model: cannot be opened: Permission denied"
    grep -q '"error": "E_IO"' out || fail "$(cat out)"
else
    echo "SKIP: root may go into every folder here"
fi
chmod 700 model

fresh
rm model/config.json
refused config.json

fresh
echo '{"hidden_size": 256, "hidden_size": 257}' >model/config.json
refused config.json

fresh
sed -i 's/LlamaForCausalLM/BananaForCausalLM/; s/"llama"/"banana"/' model/config.json
refused anana

fresh
sed -i 's/"hidden_size": 256/"hidden_size": 512/' model/config.json
refused model

fresh
sed -i 's/"model_type"/"quantization_config": {"quant_method": "fp8"}, "model_type"/' \
    model/config.json
refused quantiz

fresh
rm model/model.safetensors
refused safetensors

fresh
rm model/model.safetensors
echo x >model/pytorch_model.bin
refused .bin

fresh
truncate -s -1 model/model.safetensors
refused model.safetensors

fresh
truncate -s 5 model/model.safetensors
refused model.safetensors

fresh
: >model/model.safetensors
refused model.safetensors

fresh # a header longer than the file
bytes 0 '\377\377\377\377\377\377\377\177'
refused model.safetensors

fresh # not JSON
bytes 8 'x'
refused model.safetensors

fresh # a shape that does not match its extent
header 's/\[4096,256\]/[4096,257]/; s/\[4096, 256\]/[4096, 257]/'
refused model.safetensors

fresh # an unknown type
header 's/"F16"/"F61"/'
refused model.safetensors

fresh # a tensor that the model needs under another name
header 's/layers\.1\.self_attn\.q_proj/layers.1.self_attn.x_proj/'
refused layers.1.self_attn.q_proj

fresh # an index that names a shard that is not there
mv model/model.safetensors model/model-00001-of-00001.safetensors
cat >model/model.safetensors.index.json <<'END'
{"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-00009-of-00009.safetensors"}}
END
refused model-00009-of-00009.safetensors

fresh # and one that would leave the folder
mv model/model.safetensors other.safetensors
cat >model/model.safetensors.index.json <<'END'
{"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../other.safetensors"}}
END
refused model.safetensors.index.json model.embed_tokens.weight

# Weights that are finite, and with them no activation is: there is nothing to calibrate on.
python3 "$INGOT_ROOT/tests/tiny_checkpoint.py" vast
python3 - <<'EOF'
import json, struct
with open("vast/model.safetensors", "r+b") as file:
    size, = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(size))
    for name, tensor in header.items():
        if name.endswith(("up_proj.weight", "down_proj.weight")):
            at, end = tensor["data_offsets"]
            count = (end - at) // 4
            file.seek(8 + size + at)
            values = struct.unpack(f"<{count}f", file.read(end - at))
            file.seek(8 + size + at)
            file.write(struct.pack(f"<{count}f", *(1e30 * value for value in values)))
EOF
head -c 2000 "$MODEL/calibration.txt" >vast.txt
for method in gptq awq; do
    expect_exit 2 ingot-convert vast -o vast.ingot --method $method --group 32 --text vast.txt \
        --samples 4 --seq-len 32
    expect_error "every activation row that it reads has a value that is not finite"
    expect_no_files vast.ingot
done

# NaN and Inf among the weights: F16 0x7e00 and 0x7c00 in the last tensor of the file.
for pattern in '\000\176' '\000\174'; do
    fresh
    size=$(wc -c <model/model.safetensors)
    bytes $((size - 2)) "$pattern"
    refused model/model.safetensors model.norm.weight
done

# And in a tensor that several threads read: the first one is named.
fresh
header=$(od -An -t u8 -N 8 model/model.safetensors | tr -d ' ')
start=$(head -c $((header + 8)) model/model.safetensors |
    sed -n 's/.*"model.embed_tokens.weight": *{[^}]*"data_offsets": *\[\([0-9]*\),.*/\1/p')
for element in 1000000 400000; do
    bytes $((8 + header + start + 2 * element)) '\000\176'
done
refused model.embed_tokens.weight "element 400000 "

# ---- texts and settings ------------------------------------------------------------------------

# refused_with TEXT OPTION...: the whole model, but these options.
refused_with() {
    text=$1
    shift
    expect_exit 2 ingot-convert "$MODEL" -o out.ingot "$@"
    expect_error "$text"
    expect_no_files out.ingot
}

: >empty.txt
echo "far too short" >short.txt
refused_with empty.txt --text empty.txt
refused_with short.txt --text short.txt
refused_with no-such.txt --text no-such.txt
refused_with . --text .
refused_with group --method rtn --group 12345678
refused_with bits --method rtn --bits 9
refused_with bits --method rtn --bits 1
refused_with method --method banana
refused_with text --method gptq
refused_with text --method awq
refused_with outliers --method rtn --outliers 2
refused_with no-such.json --recipe no-such.json --method rtn
echo '{"bitz": 4}' >recipe.json
refused_with bitz --recipe recipe.json
echo '{"bits": 4,}' >recipe.json
refused_with recipe.json --recipe recipe.json

# A tokenizer that gives ids the embedding has no rows for: of a token that pads, which no text has,
# of one that they have, of a vocabulary that is larger.
fresh
cat >add.py <<'END'
import json, sys
with open("model/tokenizer.json") as file:
    tokenizer = json.load(file)
if sys.argv[1] == "vocabulary":
    tokenizer["model"]["vocab"]["captain!"] = 4100
else:
    tokenizer["added_tokens"].append({"id": 4096, "content": sys.argv[1], "single_word": False,
                                      "lstrip": False, "rstrip": False, "normalized": False,
                                      "special": False})
with open("model/tokenizer.json", "w") as file:
    json.dump(tokenizer, file)
END
python3 add.py "[PAD]"
ingot-convert model -o pads.ingot --text "$MODEL/calibration.txt" --samples 2 >out 2>err ||
    fail "a token that pads, beyond the embedding, is refused"
ingot-verify pads.ingot --text "$MODEL/evaluation.txt" --windows 1 >out 2>err ||
    fail "verification refuses a token that pads"
ingot-run pads.ingot --prompt "The old captain" -n 2 >out 2>err || fail "ingot-run refuses it"
expect_exit 2 ingot-run pads.ingot --prompt "The [PAD]"
expect_error "the text has token 4096, [PAD], the embedding 4096 rows"
fresh
python3 add.py vocabulary
expect_exit 2 ingot-run model --prompt "The old man"
expect_error "tokenizer is larger than the embedding: 4101 ids, 4096 rows"
fresh
python3 add.py "of the"
larger="the text has token 4096, of the, the embedding 4096 rows"
expect_exit 2 ingot-convert model -o out.ingot --text "$MODEL/calibration.txt"
expect_error "$larger"
expect_exit 2 ingot-calib model -o out.calib --text "$MODEL/calibration.txt"
expect_error "$larger"
expect_exit 2 ingot-run model --prompt "The captain of the ship"
expect_error "$larger"
ingot-convert model -o larger.ingot --method rtn >out 2>err
expect_exit 2 ingot-verify larger.ingot --text "$MODEL/evaluation.txt"
expect_error "$larger"
expect_no_files out.ingot out.calib
