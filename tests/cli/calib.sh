# ingot-calib: the same bytes for any number of threads, --json, and what it refuses.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-calib ingot-inspect python3

head -c 20000 "$MODEL/calibration.txt" >text.txt
head -c 10000 text.txt >a.txt
tail -c +10001 text.txt >b.txt
common="--samples 4 --seq-len 64"

# shellcheck disable=SC2086
{
    expect_exit 0 ingot-calib "$MODEL" --text text.txt -o one.calib $common --threads 1
    grep -q '^one.calib: .*4 windows of 64 tokens' out || fail "no summary: $(cat out)"
    grep -q 'block 4 of 4' err || fail "no line per block on stderr"
    expect_exit 0 ingot-calib "$MODEL" --text a.txt --text b.txt -o two.calib $common --threads 2 --json
}
cmp one.calib two.calib || fail "another number of threads or files gave other bytes"
python3 - <<'EOF'
import json, os
o = json.load(open("out"))
assert sorted(o) == ["bytes", "dropped_rows", "error", "message", "output", "peak_host_bytes",
                     "reused", "root", "samples", "seconds", "seq_len", "tokens"], sorted(o)
assert o["reused"] is False
assert o["bytes"] == os.path.getsize("two.calib") and o["error"] is o["message"] is None
assert (o["samples"], o["seq_len"], o["tokens"], o["dropped_rows"]) == (4, 64, 256, 0), o
EOF
expect_exit 0 ingot-inspect one.calib

# refuse CODE TEXT ARGUMENT...: exit 2, the message, nothing left, and the object of --json.
refuse() {
    error=$1 text=$2
    shift 2
    expect_exit 2 ingot-calib "$@"
    expect_error "$text"
    [ ! -s out ] || fail "a failure wrote to stdout"
    expect_no_files out.calib
    expect_exit 2 ingot-calib "$@" --json
    python3 - "$error" "$text" <<'EOF'
import json, sys
o = json.load(open("out"))
assert len(o) == 12 and o.pop("error") == sys.argv[1] and sys.argv[2] in o.pop("message"), o
assert all(v is None for v in o.values()), o
EOF
}
: >empty.txt
refuse E_USAGE "there is no text" "$MODEL" -o out.calib
refuse E_USAGE "there is no output" "$MODEL" --text text.txt
refuse E_NOT_FOUND "no-such.txt" "$MODEL" --text no-such.txt -o out.calib
refuse E_INPUT "empty" "$MODEL" --text empty.txt -o out.calib
head -c 300 text.txt >short.txt
refuse E_INPUT "short.txt" "$MODEL" --text short.txt --seq-len 512 -o out.calib
refuse E_USAGE "the model's context" "$MODEL" --text text.txt --seq-len 513 -o out.calib
refuse E_USAGE "--samples" "$MODEL" --text text.txt --samples 0 -o out.calib
refuse E_USAGE "abacus" "$MODEL" --text text.txt -o out.calib --device abacus
refuse E_NOT_FOUND "no/such/model" no/such/model --text text.txt -o out.calib
refuse E_INPUT "is not a folder" text.txt --text text.txt -o out.calib
refuse E_USAGE "one of the inputs" "$MODEL" --text text.txt -o text.txt --force
refuse E_USAGE "no full-precision weights" one.calib --text text.txt -o out.calib
refuse E_EXISTS "one.calib" "$MODEL" --text text.txt -o one.calib
cp -r "$MODEL" fewer
chmod -R u+w fewer
sed 's/"num_hidden_layers": 4/"num_hidden_layers": 3/' "$MODEL/config.json" >fewer/config.json
refuse E_INPUT "has 3 layers (num_hidden_layers), the checkpoint 4" fewer --text text.txt -o out.calib
cmp one.calib two.calib || fail "an existing output was touched"
# shellcheck disable=SC2086
expect_exit 0 ingot-calib "$MODEL" --text text.txt -o two.calib $common --samples 3 --force
! cmp -s one.calib two.calib || fail "--force did not replace the output"

# --reuse: the same statistics stay as they are, others are replaced, other files are refused.
cp one.calib kept.calib
touch -d '2001-01-01' kept.calib
# shellcheck disable=SC2086
{
    expect_exit 0 ingot-calib "$MODEL" --text a.txt --text b.txt -o kept.calib $common --reuse --json
    cp out reused.json
    [ "$(date -r kept.calib +%Y)" = 2001 ] || fail "statistics that were there were made again"
    expect_exit 0 ingot-calib "$MODEL" --text text.txt -o new.calib $common --reuse --json
    cmp one.calib new.calib || fail "--reuse changed what is collected"
    python3 - <<'EOF'
import json
a, b = json.load(open("reused.json")), json.load(open("out"))
assert a["reused"] and not b["reused"], (a, b)
assert all(a[key] == b[key] for key in ("bytes", "samples", "seq_len", "tokens", "root")), (a, b)
EOF
    expect_exit 0 ingot-calib "$MODEL" --text a.txt -o new.calib $common --reuse
    grep -q 'statistics of another text are replaced' err || fail "no word of the replacement"
    expect_exit 0 ingot-calib "$MODEL" --text a.txt -o new.calib --samples 3 --seq-len 64 --reuse
    grep -q 'statistics of other windows are replaced' err || fail "no word of the replacement"
    cp one.calib damaged.calib
    printf 'X' | dd of=damaged.calib bs=1 seek=300000 conv=notrunc status=none
    expect_exit 0 ingot-calib "$MODEL" --text a.txt --text b.txt -o damaged.calib $common --reuse
    grep -q 'damaged statistics are replaced' err || fail "no word of the damage: $(cat err)"
    cmp one.calib damaged.calib || fail "damaged statistics stayed"
    echo "something else" >foreign.calib
    expect_exit 1 ingot-calib "$MODEL" --text a.txt -o foreign.calib $common --reuse
    [ "$(cat foreign.calib)" = "something else" ] || fail "a foreign file was replaced"
}

# ingot-verify knows which checkpoint statistics are of.
if command -v ingot-verify >/dev/null; then
    expect_exit 0 ingot-verify one.calib --source "$MODEL"
    grep -q 'are those the statistics were taken of' out || fail "no verdict: $(cat out)"
    cp -r "$MODEL" other
    chmod -R u+w other
    printf 'X' | dd of=other/model.safetensors bs=1 seek=300000 conv=notrunc status=none
    expect_exit 1 ingot-verify one.calib --source other --json
    grep -q '"error": "E_SOURCE"' out || fail "another checkpoint: $(cat out)"
    grep -q '"source_equal": false' out || fail "no verdict: $(cat out)"
    expect_exit 1 ingot-verify one.calib --source "$INGOT_ROOT/tests/fixtures/tiny-llama" --json
    grep -q '"error": "E_SOURCE"' out || fail "a checkpoint of other shapes: $(cat out)"
fi
