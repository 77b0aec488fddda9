# --resume refuses a state that is damaged or of another conversion, says why, and touches nothing.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert
need_python json
prepare_resumes

convert
mv out.ingot whole.ingot
code=0
INGOT_TEST_KILL_WRITE=60 convert --resume || code=$?
[ $code = 137 ] && [ -e out.ingot.resume ] || fail "there is no state to begin with (exit $code)"
mkdir kept
mv out.ingot.partial out.ingot.resume kept/

# put_back: the interrupted run, as it was.
put_back() { rm -f out.ingot*; cp kept/* .; }

# refused TEXT OPTIONS...
partial= # not empty: that is damaged
refused() {
    reason=$1
    shift
    code=0
    convert --resume --json "$@" || code=$?
    [ $code = 2 ] || fail "exit code $code, expected 2: $*"
    expect_error "$reason"
    grep -q '"error": "E_STATE"' out || fail "the code is not E_STATE: $*"
    [ ! -e out.ingot ] || fail "an output appeared: $*"
    [ -n "$partial" ] || cmp out.ingot.partial kept/out.ingot.partial ||
        fail "the partial output was touched: $*"
}

put_back
refused "recipe has changed (bits)" --bits 5
refused "recipe has changed (symmetric)" --asym
refused "recipe has changed" --method awq
refused "recipe has changed" --effort best --method awq+gptq
refused "recipe has changed" --embed-bits 4
refused "seed has changed" --seed 3
refused "zstd has changed" --zstd
refused "shard-size has changed" --shard-size 20K
refused "calibration text" --samples 9
refused "calibration text" --seq-len 31
with=longer.txt refused "calibration text"
INGOT_CPU_ISA=v2 refused "another backend or instruction set"
refused "another backend or instruction set" --devices cpu,cpu
from=other refused "checkpoint has changed"
cp other/model.safetensors changed/
from=changed refused "checkpoint has changed"
cp tiny/model.safetensors changed/
echo '{"eos_token_id": 2}' >changed/generation_config.json
from=changed refused "another file of the checkpoint has changed"
rm changed/generation_config.json

# Untouched by all of that.
convert --resume
cmp whole.ingot out.ingot || fail "the bytes differ after refusals"

# A checkpoint whose unfinished part was replaced: what comes out is its conversion.
"$PYTHON" - changed/model.safetensors <<'END'
import json, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
n, = struct.unpack("<Q", data[:8])
at = json.loads(data[8:8 + n])["model.layers.3.mlp.down_proj.weight"]["data_offsets"][0]
data[8 + n + at + 3] ^= 0x80  # a sign
open(sys.argv[1], "wb").write(data)
END
put_back
from=changed convert --resume
mv out.ingot resumed.ingot
from=changed convert
cmp resumed.ingot out.ingot || fail "neither the old checkpoint's conversion nor the new one's"
! cmp -s whole.ingot out.ingot || fail "the change did not matter"

# Damage: every byte of the state is accounted for, and so is every byte that was written.
flip() { # FILE OFFSET
    "$PYTHON" - "$1" "$2" <<'END'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[int(sys.argv[2]) % len(data)] ^= 16
open(sys.argv[1], "wb").write(data)
END
}
for offset in 3 40 200 700 1500 4096 4200 9000 -20 -1; do
    put_back
    flip out.ingot.resume $offset
    refused "state is damaged"
done
put_back
head -c 1000 kept/out.ingot.resume >out.ingot.resume
refused "damaged"
: >out.ingot.resume
refused "damaged"
echo "a file of somebody else" >out.ingot.resume
refused "damaged"
[ "$(cat out.ingot.resume)" = "a file of somebody else" ] || fail "a foreign file was touched"
convert || fail "a foreign file is in the way without --resume"
[ "$(cat out.ingot.resume)" = "a file of somebody else" ] || fail "a foreign file was removed"
# A whole state, but of a build whose arithmetic has the number before: its bytes would be others.
put_back
if hashing=$(need_python xxhash && echo "$PYTHON"); then
    "$hashing" "$INGOT_ROOT/tests/change_arithmetic.py" out.ingot.resume 0
    cmp out.ingot.resume kept/out.ingot.resume || fail "the format has other digests"
    "$hashing" "$INGOT_ROOT/tests/change_arithmetic.py" out.ingot.resume -1
    refused "it is of a build that computes otherwise"
else
    echo "$hashing"
fi

partial=damaged
put_back
flip out.ingot.partial 40000
refused "the partial output does not hold what was written"
put_back
head -c 30000 kept/out.ingot.partial >out.ingot.partial
refused "the partial output does not hold what was written"

# Without its partial output a state is of no use; without --resume neither is used.
put_back
rm out.ingot.partial
convert --resume
grep -q 'its partial output is gone: removed' err || fail "it is not said that the output is gone"
cmp whole.ingot out.ingot
put_back
: >out.ingot.resume.partial # killed while it wrote a state
convert
grep -q 'left by an interrupted run, .*: removed' err || fail "it is not said that a state is dropped"
cmp whole.ingot out.ingot
[ "$(echo out.ingot*)" = out.ingot ] || fail "the interrupted run is still there"

# A signal, and two runs at once.
rm -f out.ingot*
ingot-convert tiny --group 32 --text text.txt --samples 60 --seq-len 40 --method awq -o out.ingot \
    --resume >out 2>err </dev/null &
process=$!
await_file out.ingot.resume $process
kill -STOP $process # or it may be through before the other run has looked
code=0
ingot-convert tiny --group 32 --text text.txt --samples 60 --seq-len 40 --method awq -o out.ingot \
    --resume >out2 2>err2 </dev/null || code=$?
[ $code = 2 ] || fail "two runs wrote one output at once"
grep -q 'another process is writing this output' err2 || { cat err2 >&2; fail "no reason given"; }
kill -TERM $process
kill -CONT $process
code=0
wait $process || code=$?
[ $code = 2 ] && grep -q 'blocks are kept; --resume goes on from there' err ||
    { cat err >&2; fail "SIGTERM: exit code $code"; }
[ -e out.ingot.partial ] && [ -e out.ingot.resume ] || fail "SIGTERM: nothing was kept"
convert --resume --samples 60 --seq-len 40 --method awq
[ ! -e out.ingot.resume ] || fail "the state is still there"
