# A model without its tokenizer, or with a malformed one: every tool that reads text says the same.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-calib ingot-run ingot-verify

# refuse CODE FILE COMMAND...: the tool does not run, for that file.
refuse() {
    error=$1
    file=$2
    shift 2
    expect_exit 2 "$@" --json
    expect_error "$1: $file: "
    grep -q "\"error\": *\"$error\"" out || fail "no $error: $*"
}
text=$MODEL/evaluation.txt
printf '{"context": "The", "choices": [" captain", " ship"], "answer": 0}\n' >tasks.jsonl

mkdir bare
ln -s "$MODEL"/config.json "$MODEL"/*.safetensors bare
expect_exit 0 ingot-convert bare -o bare.ingot --method rtn
grep -q 'no tokenizer.json' err || fail "a conversion does not say that the tokenizer is missing"

missing="there is no tokenizer"
beside="put the model's tokenizer.json beside its config.json"
refuse E_NOT_FOUND bare/tokenizer.json ingot-convert bare -o x.ingot --text "$text"
expect_error "$missing"
expect_error "$beside"
refuse E_NOT_FOUND bare/tokenizer.json ingot-calib bare -o x.calib --text "$text"
expect_error "$missing"
expect_error "$beside"
refuse E_NOT_FOUND bare/tokenizer.json ingot-run bare --prompt x
expect_error "$missing"
expect_error "$beside"
expect_no_files x.ingot x.calib
another="convert a checkpoint that has one"
refuse E_NOT_FOUND bare.ingot/tokenizer.json ingot-run bare.ingot --prompt x
expect_error "$missing"
expect_error "$another"
refuse E_NOT_FOUND bare.ingot/tokenizer.json ingot-verify bare.ingot --text "$text"
expect_error "$missing"
expect_error "$another"
refuse E_NOT_FOUND bare.ingot/tokenizer.json ingot-verify bare.ingot --tasks tasks.jsonl
expect_error "$missing"

# A text that the model writes is ids already.
expect_exit 0 ingot-calib bare -o x.calib --text @self --samples 2 --seq-len 16
expect_exit 0 ingot-convert bare -o x.ingot --text @self --samples 2 --seq-len 16

cp -r "$MODEL" broken
chmod -R u+w broken
echo '{"model": 1' >broken/tokenizer.json
expect_exit 0 ingot-convert broken -o broken.ingot --method rtn
! grep -q 'no tokenizer.json' err || fail "a tokenizer that is there is missed"
refuse E_INPUT broken/tokenizer.json ingot-convert broken -o y.ingot --text "$text"
refuse E_INPUT broken/tokenizer.json ingot-calib broken -o y.calib --text "$text"
refuse E_INPUT broken.ingot/tokenizer.json ingot-run broken.ingot --prompt x
refuse E_INPUT broken.ingot/tokenizer.json ingot-verify broken.ingot --text "$text"
