# What can go wrong while a zoo runs: each has its message, and nothing else is lost.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo ingot-convert
need_python json

cp -r "$MODEL" model
cp -r "$MODEL" other
manifest() {
    cat >zoo.json <<END
{"shelf": "$1",
 "models": {"m": "model", "o": "other"},
 "texts": {"cal": "model/calibration.txt"},
 "recipes": {"slow": {"defaults": {"bits": 3}, "samples": ${2:-6}}, "rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "m", "recipes": ["slow"], "calibration": "cal"},
  {"model": "o", "recipes": ["rtn"]}],
 "devices": ["cpu"]${3:-}}
END
}
begun() {
    [ -e "$1/m/slow.ingot.resume" ] && grep -qs '^block 1/' "$1/.ingot-zoo/logs/m@slow.log"
}

# A worker killed by the system: its product fails, the other is made, the next run makes it.
manifest killed
ingot-zoo run zoo.json >out 2>err </dev/null &
run=$!
await begun killed
ingot-zoo status zoo.json >out 2>err || true
grep -q 'm/slow  *running .*block [1-4] of 4' out || fail "status: $(cat out)"
kill -9 "$(convert_of $run)"
code=0
wait $run || code=$?
[ "$code" = 2 ] || fail "exit code $code"
grep -q 'm/slow: failed: ingot-convert was killed by signal 9 .*log: killed/.ingot-zoo/logs' err ||
    { cat err >&2; fail "no reason"; }
[ -e killed/o/rtn.ingot ] || fail "the other product was lost"
expect_exit 2 ingot-zoo status zoo.json
grep -q 'm/slow  *failed .*killed by signal 9' out || fail "$(cat out)"

# A second run joins in: it waits for what the first one makes, and makes nothing twice.
ingot-zoo run zoo.json >first 2>first.err </dev/null &
run=$!
await convert_of $run >pid
expect_exit 0 ingot-zoo run zoo.json
grep -q 'waits, another is at it' err || { cat err >&2; fail "it did not wait"; }
grep -q '2 products: 0 made, 2 finished before' out || fail "$(cat out)"
wait $run || fail "the first run failed: $(cat first.err)"
cp killed/m/slow.ingot whole.ingot

# The run itself is killed: so are its workers, and the next one goes on to the same bytes.
manifest ended
ingot-zoo run zoo.json >out 2>err </dev/null &
run=$!
await begun ended
worker=$(convert_of $run)
kill -9 $run
wait $run 2>/dev/null || true
await has_ended "$worker"
expect_exit 0 ingot-zoo run zoo.json
cmp whole.ingot ended/m/slow.ingot
[ "$(grep -c '^block 1/4  error' ended/.ingot-zoo/logs/m@slow.log)" = 1 ] || fail "a finished block was made again"
expect_exit 0 ingot-zoo verify zoo.json

# The same with matrices that wait for distillation, at whatever moment.
"$PYTHON" "$INGOT_ROOT/tests/tiny_checkpoint.py" tiny
head -c 3000 "$MODEL/calibration.txt" >text.txt
best() {
    cat >best.json <<END
{"shelf": "$1", "models": {"t": "tiny"}, "texts": {"cal": "text.txt"},
 "recipes": {"best": {"effort": "best", "defaults": {"bits": 2, "group": 32}, "samples": 10, "seq_len": 32}},
 "products": [{"model": "t", "recipes": ["best"], "calibration": "cal"}], "devices": ["cpu"]}
END
}
best smooth
expect_exit 0 ingot-zoo run best.json
best stopped
for moment in 0.3 0.6 0.9; do
    ingot-zoo run best.json >out 2>err </dev/null &
    run=$!
    sleep $moment
    kill -9 $run 2>/dev/null || true
    wait $run 2>/dev/null || true
    ingot-zoo verify best.json >out 2>err </dev/null || true
    ! grep -q foreign err || fail "what a conversion keeps was taken for foreign: $(cat err)"
done
expect_exit 0 ingot-zoo run best.json
cmp smooth/t/best.ingot stopped/t/best.ingot
[ "$(ls stopped/t)" = best.ingot ] || fail "something was left: $(ls stopped/t)"
# A conversion that was killed while it wrote its first state.
best half
mkdir -p half/t
: >half/t/best.ingot.resume.partial
ingot-zoo verify best.json >out 2>err </dev/null || true
! grep -q foreign err || fail "half a state was taken for foreign: $(cat err)"
expect_exit 0 ingot-zoo run best.json
[ "$(ls half/t)" = best.ingot ] || fail "half a state was left: $(ls half/t)"

# Shared files that the manifest has no use for stay while another run is at work: it may have one.
manifest ended
unused=ended/.ingot-zoo/statistics/$(printf '%032d' 7).calib
echo x >"$unused"
"$PYTHON" -c 'if True:
    import fcntl, sys, time
    held = open(sys.argv[1], "r+")
    fcntl.lockf(held, fcntl.LOCK_EX)
    open(sys.argv[2], "w").close()
    time.sleep(60)' ended/.ingot-zoo/locks/m@slow.lock locked &
other=$!
await test -e locked
ingot-zoo plan zoo.json >out 2>err || true
! grep -q 'no product uses any more' out || fail "what stays counts as room: $(cat out)"
expect_exit 0 ingot-zoo run zoo.json --only o/rtn
[ -e "$unused" ] || fail "it was removed under a run"
kill $other
wait $other 2>/dev/null || true
expect_exit 0 ingot-zoo run zoo.json --only o/rtn
[ ! -e "$unused" ] || fail "it was not removed"

# Statistics that a killed run has left at work are waited for, whoever wants them.  The tool ends by
# itself when the run does, but not before it is stopped, unless it is late for that: once more then.
# Stopped before, the system would continue it and hang it up.
for attempt in 1 2 3 4 5; do
    cat >shared.json <<END
{"shelf": "shared$attempt", "models": {"o": "other"}, "texts": {"cal": "model/calibration.txt"},
 "recipes": {"a": {"samples": 48, "seq_len": 512}, "b": {"defaults": {"bits": 3}, "samples": 48, "seq_len": 512}},
 "products": [{"model": "o", "recipes": ["a", "b"], "calibration": "cal", "statistics": true}], "devices": ["cpu"]}
END
    ingot-zoo run shared.json --only o/a >out 2>err </dev/null &
    run=$!
    await pgrep -P $run ingot-calib >pid
    orphan=$(cat pid)
    await sh -c 'ingot-zoo status shared.json 2>&1 | grep -q "o/a  *running .*block [1-4] of 4"'
    kill -9 $run
    wait $run 2>/dev/null || true
    kill -STOP "$orphan" 2>/dev/null || { orphan=; continue; }
    sleep 0.1
    grep -qs '^State:[[:space:]]*T' "/proc/$orphan/status" && break
    orphan=
done
[ -n "$orphan" ] || fail "the tool was never stopped in time"
ingot-zoo run shared.json --only o/b >second 2>second.err </dev/null &
run=$!
await test -s second.err
sleep 1
kill -CONT "$orphan"
wait $run || fail "it did not wait: $(cat second.err)"
grep -q 'o/b: waits, another is at it' second.err || fail "$(cat second.err)"

# SIGINT: what runs is ended, what waits is left, and said so.
terminate() { # ARGUMENT...: of a run of the manifest "interrupted", once it is at work
    rm -rf interrupted
    ingot-zoo run zoo.json "$@" >out 2>err </dev/null &
    run=$!
    await begun interrupted
    kill -TERM $run
    code=0
    wait $run || code=$?
    [ "$code" = 2 ] || fail "exit code $code after a signal"
    expect_error "interrupted by SIGTERM"
}
manifest interrupted
terminate --json
"$PYTHON" - out <<'END' || fail "not so after a signal: $(cat out)"
import json, sys
result = json.load(open(sys.argv[1]))
assert result["error"] == "E_INTERRUPTED" and "SIGTERM" in result["message"]
assert [p["state"] for p in result["products"]] == ["failed", "left"] and result["left"] == 1
END
terminate
grep -q '1 left by the interruption' out || fail "$(cat out)"
[ -e interrupted/m/slow.ingot.resume ] || fail "no state was kept"
# A state that is damaged is no use, and no harm.
printf 'xxxx' | dd of=interrupted/m/slow.ingot.resume bs=1 seek=300 conv=notrunc 2>/dev/null
expect_exit 0 ingot-zoo run zoo.json
cmp whole.ingot interrupted/m/slow.ingot
[ "$(grep -c '^block 1/4  error' interrupted/.ingot-zoo/logs/m@slow.log)" = 2 ] || fail "the state was not refused"

# A checkpoint that is changed while it is converted gives no product.
manifest changed
ingot-zoo run zoo.json >out 2>err </dev/null &
run=$!
await begun changed
touch model/model.safetensors
code=0
wait $run || code=$?
[ "$code" = 1 ] || fail "exit code $code"
grep -q 'm/slow: failed: model: the checkpoint was changed while it was converted' err ||
    { cat err >&2; fail "no reason"; }
[ -e changed/o/rtn.ingot ] || fail "the other product was lost"
expect_exit 0 ingot-zoo run zoo.json

# Clocks that jump change nothing: files of the future and of the past are the same files.
touch -d 2037-01-01 changed/.ingot-zoo/records/*.json changed/.ingot-zoo/locks/*
touch -d 1971-01-01 model/*
expect_exit 0 ingot-zoo run zoo.json
grep -q '0 made, 2 finished before' out || fail "$(cat out)"

# What is foreign, damaged, missing or of another record is found.
touch changed/stranger.ingot
rm changed/o/rtn.ingot
printf 'x' | dd of=changed/m/slow.ingot bs=1 seek=1500000 conv=notrunc 2>/dev/null
expect_exit 1 ingot-zoo verify zoo.json
grep -q '0 whole, 1 missing, 1 damaged, 0 stale' out || fail "$(cat out)"
grep -q 'stranger.ingot: foreign' err || { cat err >&2; fail "the stranger was not found"; }
sed -i 's/"state"/"stete"/' changed/.ingot-zoo/records/m@slow.json
expect_exit 1 ingot-zoo verify zoo.json
grep -q 'm/slow: damaged: its record is damaged' err || { cat err >&2; fail "no reason"; }

# A file that is on no record is not replaced.
manifest taken
mkdir -p taken/o
echo mine >taken/o/rtn.ingot
expect_exit 2 ingot-zoo run zoo.json --only o/rtn
grep -q 'o/rtn: failed: taken/o/rtn.ingot: a file that is not on record is in the place' err ||
    { cat err >&2; fail "no reason"; }
[ "$(cat taken/o/rtn.ingot)" = mine ] || fail "it was replaced"

# A tokenizer that is not there is found before a conversion whose result could not be scored.
manifest unread
mv other/tokenizer.json .
sed -i 's/"recipes": \["rtn"\]/&, "evaluation": "cal"/' zoo.json
expect_exit 2 ingot-zoo run zoo.json --only o/rtn --json
grep -q 'o/rtn: failed: other/tokenizer.json: there is no tokenizer' err || { cat err >&2; fail "no reason"; }
grep -q '"error": "E_NOT_FOUND"' out || fail "$(cat out)"
expect_no_files unread/o/rtn.ingot
mv tokenizer.json other

# Folders and texts that are not there are found before anything is begun, with the line.
manifest nothing
rm -r other
expect_exit 2 ingot-zoo run zoo.json
expect_error 'zoo.json: line 2: model "o": other: there is no such folder'
cp -r "$MODEL" other
sed -i 's,model/calibration.txt,no/such.txt,' zoo.json
expect_exit 2 ingot-zoo plan zoo.json
expect_error 'zoo.json: line 3: text "cal": no/such.txt: cannot open'
sed -i 's,no/such.txt,model,' zoo.json
expect_exit 2 ingot-zoo run zoo.json
expect_error 'zoo.json: line 3: text "cal": model: is a folder, not a file'
expect_no_files nothing

# What does not fit is named before it is begun.
manifest small 6 ', "limits": {"host_bytes": 1000000}'
expect_exit 2 ingot-zoo run zoo.json
grep -q 'm/slow: failed: needs .* of host memory, there are 1.0 MB (fewer "samples"' err ||
    { cat err >&2; fail "no reason"; }
manifest small 6 ', "limits": {"disk_bytes": 1000000}'
expect_exit 2 ingot-zoo run zoo.json
expect_error 'nothing was begun: the products that are left need'

# A disk that fills up in the middle, and one that cannot be written.
if unshare -m true 2>/dev/null; then
    mkdir full
    manifest full 2 ', "limits": {"disk_bytes": 1000000000000}'
    cat >inside.sh <<'END'
set -eu
. "$INGOT_ROOT/tests/lib.sh"
mount -t tmpfs -o size=5m none full || exit 77
expect_exit 2 ingot-zoo run zoo.json
grep -qi 'failed: .*space' err || { cat err >&2; fail "no reason"; }
grep -q '1 made, 0 finished before, 1 failed' out || fail "nothing else should be lost: $(cat out)"
mount -o remount,size=50m full
expect_exit 0 ingot-zoo run zoo.json
grep -q '1 made, 1 finished before' out || fail "$(cat out)"
mount -o remount,ro full
sed -i 's/"bits": 3/"bits": 2/' zoo.json
expect_exit 2 ingot-zoo run zoo.json
grep -qi 'read-only' err || { cat err >&2; fail "no reason"; }
END
    run_with_mounts inside.sh
else
    echo "SKIP: only root can mount a small file system"
fi
