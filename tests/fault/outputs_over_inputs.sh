# No tool replaces what it reads, nor a device, whatever --force says; a full disk under the outputs
# of ingot-calib and of the page of ingot-verify.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-calib ingot-verify

cp -r "$MODEL" model
chmod -R u+w model
head -c 20000 model/calibration.txt >text.txt
echo '{}' >recipe.json
ln model/tokenizer.json link.json
ingot-convert model -o model.ingot --method rtn >out 2>err
ingot-calib model --text text.txt -o model.calib --samples 2 --seq-len 64 >out 2>err
sums() {
    cat model/* text.txt recipe.json link.json model.ingot model.calib | cksum
}
before=$(sums)

# refused COMMAND...: exit 2, and it says why.
refused() {
    expect_exit 2 "$@"
    expect_error "$reason"
}
reason="one of the inputs"
for output in model/config.json model/model.safetensors model/tokenizer.json link.json; do
    refused ingot-calib model --text text.txt -o "$output" --force
    refused ingot-convert model -o "$output" --method rtn --force
done
refused ingot-calib model --text text.txt -o text.txt --force
refused ingot-convert model --stats model.calib -o model.calib --force
refused ingot-convert model --recipe recipe.json -o recipe.json --force

reason="would replace an input or a container"
for page in model.ingot text.txt model/config.json model/model.safetensors link.json model.calib; do
    refused ingot-verify model.ingot --source model --text text.txt --html "$page"
done
expect_exit 2 ingot-verify model.ingot --html model.ingot --json
grep -q '"error": "E_USAGE"' out || fail "no JSON object with the error"

# A pipe stands for every kind of file that a rename must not replace.
mkfifo pipe
reason="not a file"
refused ingot-convert model -o pipe --method rtn --force
refused ingot-calib model --text text.txt -o pipe --seq-len 64 --force
refused ingot-verify model.ingot --html pipe
[ -p pipe ] || fail "the pipe was replaced"

[ "$(sums)" = "$before" ] || fail "an input was changed"
[ -z "$(find . -name '*.partial')" ] || fail "a partial file was left"

sweep INGOT_TEST_FAIL_WRITE space out.calib \
    ingot-calib model --text text.txt -o out.calib --samples 2 --seq-len 64
sweep INGOT_TEST_FAIL_WRITE space out.html ingot-verify model.ingot --html out.html
