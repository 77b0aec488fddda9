# ingot-zoo on a disk that holds its products and little more: what is there already counts.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo ingot-convert
need_python json

cp -r "$MODEL" model
manifest() { # BITS [FORM]
    cat >zoo.json <<END
{"shelf": "shelf", "models": {"m": "model"}, "texts": {"cal": "model/calibration.txt"},
 "recipes": {"a": {"defaults": {"bits": $1}, "samples": 6}, "b": {"defaults": {"method": "rtn", "bits": $1}}},
 "products": [{"model": "m", "recipes": ["a", "b"], "calibration": "cal"${2:-}}], "devices": ["cpu"]}
END
}
needed() { # what the plan wants of the disk
    ingot-zoo plan zoo.json --json >plan.json 2>/dev/null </dev/null || true
    "$PYTHON" -c 'import json; print(json.load(open("plan.json"))["disk_bytes"])'
}
interrupt() {
    ingot-zoo run zoo.json --only m/a >out 2>err </dev/null &
    run=$!
    await test -e shelf/m/a.ingot.resume
    kill -9 $run
    wait $run 2>/dev/null || true
    await unlocked
}
unlocked() {
    ! ingot-zoo status zoo.json 2>/dev/null </dev/null | grep -q ' running '
}

# A conversion that was interrupted has its room: it goes on in it.
manifest 3
all=$(needed)
interrupt
less=$((all - $(needed)))
[ $less -gt 3000000 ] || fail "a partial file of 3.4 MB saves $less bytes"
# Of a recipe that is taken back nothing is left.
expect_exit 0 ingot-zoo run zoo.json
manifest 3 ', "zstd": true'
interrupt
manifest 3
expect_exit 0 ingot-zoo run zoo.json
[ "$(ls shelf/m | wc -l)" = 2 ] || fail "there is $(ls shelf/m)"
# Shards at work are nobody else's.
manifest 3 ', "shard_bytes": 1000000'
interrupt
ls shelf/m/*-of-*.partial >/dev/null || fail "no shards: $(ls shelf/m)"
ingot-zoo verify zoo.json >out 2>err </dev/null || true
! grep -q foreign err || fail "$(cat err)"
manifest 4
expect_exit 0 ingot-zoo run zoo.json
[ "$(ls shelf/m | wc -l)" = 2 ] || fail "there is $(ls shelf/m)"

# A shelf that is made anew takes the room of one product more, or of as many as are made at a time.
manifest 3
one=$(needed)
[ "$one" -lt 4000000 ] || fail "$one bytes to replace one after another"
sed -i 's/"devices"/"limits": {"jobs": 2}, &/' zoo.json
[ "$(needed)" -gt $((one * 3 / 2)) ] || fail "$(needed) bytes to replace two at a time, one $one"
# What a conversion keeps beside its file, a byte a weight that waits for distillation, is there as
# many times as there are conversions at work.
cat >two.json <<END
{"shelf": "two", "models": {"m": "model"}, "texts": {"cal": "model/calibration.txt"},
 "recipes": {"a": {"effort": "best", "samples": 6}, "b": {"effort": "best", "samples": 8}},
 "products": [{"model": "m", "recipes": ["a", "b"], "calibration": "cal"}], "devices": ["cpu"]}
END
for jobs in 1 2 3; do
    ingot-zoo plan two.json --jobs $jobs --json >plan$jobs.json 2>/dev/null </dev/null
done
"$PYTHON" - <<'END' || fail "what is kept beside two files"
import json
one, two, three = [json.load(open("plan%d.json" % jobs)) for jobs in (1, 2, 3)]
beside = [p["disk_bytes"] - p["file_bytes"] for p in one["products"]]
assert min(beside) > 2500000, beside
assert two["disk_bytes"] - one["disk_bytes"] == beside[0], (one["disk_bytes"], two["disk_bytes"])
assert two["disk_bytes"] == three["disk_bytes"] == sum(p["disk_bytes"] for p in two["products"])
END
if ! unshare -m true 2>/dev/null; then
    echo "SKIP: only root can mount a small file system"
    exit 0
fi
manifest 3
mv shelf whole
mkdir shelf
cat >inside.sh <<'END'
set -eu
. "$INGOT_ROOT/tests/lib.sh"
mount -t tmpfs -o size=12m none shelf || exit 77
cp -a whole/. shelf
# A file that no product uses any more, and that a run removes first, is room, too.
free=$(df --output=avail -k shelf | tail -n 1)
head -c $(((free - 100) * 1024)) /dev/zero >shelf/.ingot-zoo/statistics/$(printf '%032d' 7).calib
expect_exit 0 ingot-zoo plan zoo.json
expect_exit 0 ingot-zoo run zoo.json
grep -q '2 made' out || fail "$(cat out)"
# A disk without a byte left is not one that nothing is known of.
sed -i 's/"bits": 3/"bits": 4/g' zoo.json
cat /dev/zero >shelf/full 2>/dev/null || :
expect_exit 2 ingot-zoo plan zoo.json
grep -q 'of disk' err out || fail "$(cat err out)"
END
run_with_mounts inside.sh
