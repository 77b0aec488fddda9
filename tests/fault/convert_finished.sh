# --resume of a conversion that is complete says so and ends with 0, wherever the run before was killed
# behind the final rename; nothing else that lies under the output's name is taken for its result.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify flock
need_python json
prepare_resumes

# mark: what the output's files are; one that is written anew has another number.
mark() { ls -i --full-time out*.ingot; }

# finished OPTIONS...: ends well, touches nothing and leaves nothing beside the output.
finished() {
    before=$(mark)
    convert --resume "$@" || { cat err >&2; fail "a complete conversion: $*"; }
    grep -q 'is the whole result of this conversion' err || fail "it is not said: $*"
    grep -q 'complete before' out || grep -q '"tensors": null' out || fail "$(cat out)"
    [ "$(mark)" = "$before" ] || fail "the output was touched: $*"
    [ "$(echo out*.*)" = "$(echo out*.ingot)" ] || fail "something is left: $(ls)"
}

# refused TEXT OPTIONS...
refused() {
    reason=$1
    shift
    before=$(mark)
    code=0
    convert --resume --json "$@" || code=$?
    [ $code = 2 ] || fail "exit code $code, expected 2: $*"
    expect_error "$reason"
    grep -q '"error": "E_EXISTS"' out || fail "the code is not E_EXISTS: $*"
    [ "$(mark)" = "$before" ] || fail "the output was touched: $*"
}

# stop CHANGE OPTIONS...: killed at a change of the output; what is beside it is kept.
stop() {
    n=$1
    shift
    rm -rf out*.ingot* kept
    code=0
    INGOT_TEST_KILL_WRITE=$n convert --resume "$@" || code=$?
    [ $code = 137 ] && [ -e out.ingot.resume ] || fail "no state to begin with (exit $code): $*"
    mkdir kept
    cp out.ingot.* kept/
    rm -f kept/out.ingot.partial
}

# Killed behind the final rename: the state is still there, and so is what waited.
for options in "" "--zstd" "--effort best --bits 2"; do
    # shellcheck disable=SC2086
    {
        stop 70 $options
        convert --resume $options
        finished $options
        cp kept/* .
        : >out.ingot.resume.partial
        finished --threads 1 $options
        # --force replaces, but for what the interrupted run had come to.
        cp kept/* .
        finished --force $options
        before=$(mark)
        convert --resume --force $options
        [ "$(mark)" != "$before" ] || fail "--force wrote nothing"
    }
done
rm -f out*.ingot
convert --resume --json
cp out first.json
finished --json
"$PYTHON" - out first.json <<'END' || fail "--json of a complete conversion"
import json, sys
a, b = (json.load(open(name)) for name in sys.argv[1:])
keys = ("output", "bytes", "root", "content_id", "bits_per_weight", "fallbacks", "error")
sys.exit(a.keys() != b.keys() or any(a[key] != b[key] for key in keys) or not a["root"])
END

# Without --resume, and of any other conversion, it is an output that exists.
code=0
convert || code=$?
[ $code = 2 ] && grep -q 'the output exists' err || fail "without --resume: exit code $code"
refused "its plan, META or files are others" --bits 5
refused "its plan, META or files are others" --seed 3
refused "its plan, META or files are others" --samples 9
refused "its plan, META or files are others" --embed-bits 4
refused "its plan, META or files are others" --method awq
refused "its plan, META or files are others" --zstd
with=longer.txt refused "its plan, META or files are others"
from=other refused "of the checkpoint has changed"
INGOT_CPU_ISA=v2 refused "its plan, META or files are others"
refused "its plan, META or files are others" --devices cpu,cpu
echo '{"eos_token_id": 2}' >changed/generation_config.json
from=changed refused "its plan, META or files are others"
rm changed/generation_config.json
"$PYTHON" - changed/model.safetensors <<'END'
import json, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
n, = struct.unpack("<Q", data[:8])
at = json.loads(data[8:8 + n])["model.layers.3.mlp.down_proj.weight"]["data_offsets"][0]
data[8 + n + at + 3] ^= 0x80  # a sign
open(sys.argv[1], "wb").write(data)
END
from=changed refused "model.layers.3.mlp.down_proj.weight of the checkpoint has changed"
finished

# Of a build whose arithmetic has another number, which META says.
if hashing=$(need_python xxhash && echo "$PYTHON"); then
    cp out.ingot kept/result
    "$hashing" "$INGOT_ROOT/tests/change_arithmetic.py" out.ingot 0
    cmp out.ingot kept/result || fail "the format has other digests"
    "$hashing" "$INGOT_ROOT/tests/change_arithmetic.py" out.ingot 1
    expect_exit 0 ingot-verify out.ingot
    refused "its plan, META or files are others"
    cp kept/result out.ingot
    finished
else
    echo "$hashing"
fi

# A partial file that nobody writes goes; one that is being written stays, and so does one that the
# state of a run with --force speaks of.
: >out.ingot.partial
finished
: >out.ingot.partial
flock out.ingot.partial sleep 60 &
holder=$!
sleep 0.3
code=0
convert --resume || code=$?
[ $code = 2 ] && [ -e out.ingot.partial ] || fail "an output that is being written: exit $code"
expect_error "another process is writing this output"
kill $holder
wait $holder 2>kill || true
rm out.ingot.partial
cp out.ingot whole
code=0
INGOT_TEST_KILL_WRITE=70 convert --resume --force || code=$?
[ $code = 137 ] && [ -e out.ingot.resume ] || fail "no state to begin with (exit $code): --force"
refused "a run that replaces it was interrupted"
[ -e out.ingot.partial ] || fail "the partial output is gone"
before=$(mark)
convert --resume --force
[ "$(mark)" != "$before" ] || fail "--force did not go on"
cmp out.ingot whole || fail "--force went on to something else"
finished

# Damage, and what is no container.
for offset in 3 200 4096 40000 -1; do
    "$PYTHON" - out.ingot $offset <<'END'
import sys
data = bytearray(open("whole", "rb").read())
data[int(sys.argv[2])] ^= 16
open(sys.argv[1], "wb").write(data)
END
    refused "the output exists"
done
head -c 30000 whole >out.ingot
refused "the output exists"
echo "a file of somebody else" >out.ingot
refused "the output exists"
cp kept/out.ingot.resume out.ingot # a state is a container, too
refused "its plan, META or files are others"
cp whole out.ingot
finished

# Sets.
set="--shard-size 20K"
rm -f out*.ingot
# shellcheck disable=SC2086
{
    stop 70 $set
    convert --resume $set
    finished $set
    cp kept/out.ingot.resume .
    finished $set
    last=$(ls out*.ingot | tail -n 1)
    mv "$last" aside
    code=0
    convert --resume $set || code=$?
    [ $code = 2 ] && [ ! -e "$last" ] || fail "a set without a shard: exit code $code"
    mv aside "$last"
    finished $set
}
