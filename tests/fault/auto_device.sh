# "auto" is to a plan what it is to a run: a GPU where one opens, else the CPU; and the plan says which.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo ingot-convert ingot-inspect

mkdir lib bin
cp "$INGOT_BUILD/fault/small_card.so" lib/libcuda.so.1
cp "$INGOT_BUILD/fault/cpu_card.so" lib/libingot_cuda.so
with_card() { # COMMAND...
    LD_LIBRARY_PATH=$PWD/lib INGOT_TEST_CARD_BYTES=$((bytes + 220000000)) "$@"
}
said() { grep -q "$1" out || fail "not told: $1: $(cat out err)"; }
bytes=20000000000

# ingot-convert opens what it takes.
expect_exit 0 with_card ingot-convert "$MODEL" --dry-run --method rtn --json
said '"device": "cuda/a card of the tests"'
expect_exit 0 with_card ingot-convert "$MODEL" --dry-run --method rtn --device cpu
said 'about .*s on cpu/.*, which it takes here'
expect_exit 0 ingot-convert "$MODEL/config.json" --dry-run --method rtn --json
said '"device": null'

# ingot-zoo: memory of a device, how much there is, and the tools that run are those of the plan.
cat >zoo.json <<END
{"shelf": "shelf", "models": {"m": "$MODEL"}, "texts": {"t": "$MODEL/calibration.txt"},
 "recipes": {"w4": {"samples": 4}, "rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "m", "recipes": ["w4"], "calibration": "t"}, {"model": "m", "recipes": ["rtn"]}]}
END
expect_exit 0 ingot-zoo plan zoo.json
said '2 products on cpu;'
expect_exit 0 ingot-zoo plan zoo.json --json
grep -q '"device_bytes": [1-9]' out && fail "a device without one: $(cat out)"
expect_exit 0 with_card ingot-zoo plan zoo.json
said '2 products on cuda;'
expect_exit 0 with_card ingot-zoo plan zoo.json --json
tr -d '\n ' <out | grep -q '"devices":\["cuda"\]' || fail "the plan does not say what it is for: $(cat out)"
said '"device_bytes": [1-9]'
said '"device_free_bytes": 20000000000'
bytes=40000000
expect_exit 2 with_card ingot-zoo plan zoo.json --device auto
grep -q 'm/w4: needs at least .* of device memory, 40.0 MB are free' err || fail "no reason: $(cat err)"
expect_exit 2 with_card ingot-zoo run zoo.json
grep -q 'm/w4: failed: needs at least' err || fail "no reason: $(cat err)"
grep -q 'm/rtn: converting on cuda' err || fail "what fits was not made there: $(cat err)"
ingot-inspect shelf/m/rtn.ingot | grep -q 'cuda/a card of the tests' || fail "it was made elsewhere"
# A driver without a library that fits it is no device.
mv lib/libingot_cuda.so library
printf 'none' >lib/libingot_cuda.so
expect_exit 0 with_card ingot-zoo run zoo.json
grep -q 'm/w4: converting on cpu' err || fail "not on the CPU: $(cat err)"

# Tasks of Slurm have room for either.
mv library lib/libingot_cuda.so
printf '#!/bin/sh\necho "$@" >>asked\necho 7\n' >bin/sbatch
printf '#!/bin/sh\n' >bin/squeue
chmod +x bin/*
sed 's/"shelf": "shelf"/"shelf": "other"/' zoo.json >slurm.json
PATH=$PWD/bin:$PATH expect_exit 0 ingot-zoo slurm slurm.json --only m/rtn
grep -q -e '--mem=1024M' asked || fail "no room for a process on a GPU: $(cat asked)"
