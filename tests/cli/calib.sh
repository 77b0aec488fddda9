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
assert sorted(o) == ["bytes", "dropped_rows", "error", "output", "peak_host_bytes", "root", "samples",
                     "seconds", "seq_len", "tokens"], sorted(o)
assert o["bytes"] == os.path.getsize("two.calib") and o["error"] is None
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
    python3 - "$error" <<'EOF'
import json, sys
o = json.load(open("out"))
assert len(o) == 10 and o.pop("error") == sys.argv[1], o
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
refuse E_USAGE "one of the inputs" "$MODEL" --text text.txt -o text.txt --force
refuse E_USAGE "no full-precision weights" one.calib --text text.txt -o out.calib
refuse E_EXISTS "one.calib" "$MODEL" --text text.txt -o one.calib
cmp one.calib two.calib || fail "an existing output was touched"
# shellcheck disable=SC2086
expect_exit 0 ingot-calib "$MODEL" --text text.txt -o two.calib $common --samples 3 --force
! cmp -s one.calib two.calib || fail "--force did not replace the output"
