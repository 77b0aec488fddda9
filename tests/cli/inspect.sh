# ingot-inspect on containers whose every text and number is a stranger's: what it prints is printable,
# and JSON that says what the file says.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-inspect ingot-verify
need_python numpy xxhash zstandard
export PYTHONDONTWRITEBYTECODE=1

# The vectors' own writer, so that the file holds what the C writer would not write.
cat >strange.py <<'PYTHON'
import struct
import sys
sys.path.insert(0, sys.argv[1])
from container import DENSE, F32, Edit, File, dense

meta = (b'{"\\u001b]0;title\\u0007":{"\\u009b2J\\nkey":"\\u001b[31m","\\u202e":[1,{"\\u001b":2}]},'
        b'"n":1e300,"plain":"\xc3\xa9"}')
tensors = [dense(f"layers.{'9' * 60}.{i}.w", [2, 3], F32, i, DENSE) for i in range(3)]
raw = File(tensors, [("config.json", b"{}")], meta).build()
edit = Edit(raw)
ledger = edit.where("LEDG")[0]
most = struct.pack("<Q", 2**64 - 1)
edit.put(ledger + 16, most).put(ledger + 24, most).put(ledger + 4, b"\xff" * 4)
edit.put(ledger + 32, struct.pack("<d", 1.7e308)).repair()
open("strange.ingot", "wb").write(edit.raw)
open("text.ingot", "wb").write(File(tensors, [], b"\x1b[2J no JSON").build())
open("list.ingot", "wb").write(File(tensors, [], b'["\\u001b"]').build())
PYTHON
"$PYTHON" strange.py "$INGOT_ROOT/tests/vectors" || fail "the containers were not made"

# printable FILE: no byte in it moves a cursor or ends a line early.
printable() {
    LC_ALL=C grep -q '[^ -~]' "$1" && { LC_ALL=C grep '[^ -~]' "$1" | od -c >&2; fail "$2: control bytes"; }
    return 0
}

expect_exit 0 ingot-verify --quick strange.ingot
for options in "" "--tensors" "--compare strange.ingot"; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-inspect strange.ingot $options
    printable out "inspect $options"
    grep -q '^Provenance$' out || fail "no provenance"
done
expect_exit 0 ingot-inspect strange.ingot --tensors --json
LC_ALL=C grep -q '[[:cntrl:]]' out && fail "--json: control bytes"
"$PYTHON" - out <<'PYTHON' || fail "the JSON is not what the file says"
import json
import sys
got = json.load(open(sys.argv[1]))
assert "\x1b]0;title\x07" in got["meta"], got["meta"]
ledger = got["tensors"][0]["ledger"]
assert ledger["tokens_seen"] >= 2**63 and ledger["outliers"] >= 2**63, ledger
assert ledger["dead_columns"] == 2**32 - 1, ledger
PYTHON

expect_exit 0 ingot-verify --quick strange.ingot --json
"$PYTHON" -c 'import json; t = json.load(open("out"))["tensors"][0]
assert t["tokens_seen"] >= 2**63 and t["outliers"] >= 2**63, t' || fail "counts of ingot-verify"

for file in text list; do
    expect_exit 1 ingot-verify $file.ingot --json
    grep -q '"E_META"' out || fail "$file: not E_META"
done
expect_exit 2 ingot-inspect text.ingot
printable err "an error"
expect_exit 0 ingot-inspect list.ingot
printable out "META that is a list"
expect_exit 2 ingot-inspect none.ingot --json
grep -q '"error": "E_NOT_FOUND"' out && grep -q '"message": "none.ingot: ' out || fail "no reason: $(cat out)"

# Errors of a role are those of the kind of layer in ingot-verify (spec/quality.md, section 2).
ingot-convert "$MODEL" -o model.ingot --method rtn >/dev/null 2>&1 || fail "conversion"
expect_exit 0 ingot-verify model.ingot --quick --json
mv out verified
expect_exit 0 ingot-inspect model.ingot --json
"$PYTHON" - verified out <<'PYTHON' || fail "the tools disagree"
import json
import sys
verified, inspected = (json.load(open(path)) for path in sys.argv[1:])
kinds = verified["kinds"]
errors = {r["role"].split(".")[-2].removesuffix("_proj"): r for r in inspected["roles"]}
for kind, values in kinds.items():
    for key in ("weight_error", "weight_error_rtn"):
        assert abs(errors[kind][key] / values[key] - 1) < 1e-12, (kind, key, errors[kind][key], values[key])
assert len(kinds) == 7, kinds
PYTHON
expect_exit 0 ingot-inspect model.ingot
grep -q '^Relative errors, root mean squares over the tensors' out || fail "the text says other means"

# A digest of whole files takes its time, which a terminal is shown.
if command -v script >/dev/null; then
    TERM=xterm script -qec "ingot-inspect model.ingot --sha256" /dev/null >out 2>err </dev/null ||
        fail "ingot-inspect on a terminal: $(cat out)"
    grep -aq 'SHA-256 .*100%' out || fail "no progress: $(cat out)"
else
    echo "SKIP: script is not there, which makes a terminal"
fi

# A file of a checkpoint is no container; its folder is what to name.
expect_exit 1 ingot-inspect "$MODEL/model.safetensors"
expect_error "name the folder that holds it and config.json"
