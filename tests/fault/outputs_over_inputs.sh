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

# By a link, too: it is the file behind it that would be replaced.
for input in model/tokenizer.json text.txt model.calib; do
    ln -sf "$input" behind
    reason="one of the inputs"
    refused ingot-calib model --text text.txt --text model.calib -o behind --force
    refused ingot-convert model --text text.txt --text model.calib -o behind --force
    reason="would replace an input or a container"
    refused ingot-verify model.ingot --source model --text text.txt --html behind
done
# Of a set, where the name of a shard leads to one.
set_over() {
    refused ingot-convert model --text text.txt -o set.ingot --shard-size 1000000 --force
}
ln -s text.txt set-00001-of-00003.ingot
reason="do not lead into one folder"
set_over
mkdir shards
for shard in 1 2 3; do
    ln -sf shards/set-0000$shard-of-00003.ingot set-0000$shard-of-00003.ingot
done
ln text.txt shards/set-00002-of-00003.ingot
reason="one of the inputs"
set_over
rm set-* shards/*

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
