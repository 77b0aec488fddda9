# ingot-zoo on a card that is full: what cannot be on it is named before anything is begun, with what
# to change; what fits is not refused.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo

mkdir lib
cp "$INGOT_BUILD/fault/small_card.so" lib/libcuda.so.1
cat >zoo.json <<END
{"shelf": "shelf", "models": {"m": "$MODEL"}, "texts": {"t": "$MODEL/calibration.txt"},
 "recipes": {"w4": {"samples": 4}, "best": {"samples": 4, "effort": "best"},
  "rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "m", "recipes": ["w4", "best"], "calibration": "t"},
  {"model": "m", "recipes": ["rtn"]}],
 "devices": ["cuda:0", "cpu"]}
END
plan() { # CODE BYTES OPTIONS...: with so many bytes beside the context and the kernels of one process
    code=$1 bytes=$2
    shift 2
    LD_LIBRARY_PATH=$PWD/lib INGOT_TEST_CARD_BYTES=$((bytes + 220000000)) expect_exit "$code" ingot-zoo "$@"
}

plan 0 20000000000 plan zoo.json --json
grep -q '"device_free_bytes": 20000000000' out || fail "the card was not asked: $(cat out)"
plan 2 40000000 plan zoo.json
grep -q 'm/w4: needs at least .* of device memory, 40.0 MB are free on a card of the manifest' err ||
    { cat err >&2; fail "no reason"; }
grep -q 'a smaller "seq_len"' err || fail "it is not said what to change"
! grep -q 'm/rtn: needs' err || fail "what fits was refused"
# A run begins nothing of what does not fit, and only that; another device is another matter.
plan 2 40000000 run zoo.json --only m/w4
grep -q 'm/w4: failed: needs at least' err || { cat err >&2; fail "no reason"; }
[ ! -e shelf/m/w4.ingot ] && [ ! -e shelf/m/w4.ingot.partial ] || fail "something was begun"
plan 0 40000000 plan zoo.json --device cpu
# One device has one job at a time.  None gets far: there is no more of the card than a plan asks.
began_together() { # PRODUCT PRODUCT
    grep -n -e "$1: converting" -e "$1: failed" -e "$2: converting" err >lines
    sed -n 2p lines | grep -q "$2: converting"
}
plan 2 20000000000 run zoo.json --device cuda:0
! began_together m/w4 m/best || fail "two at a time on one device: $(cat err)"
# Two that do not fit beside each other wait for each other, by what is free or what is allowed.
plan 2 20000000000 run zoo.json --device cuda:0 --jobs 2
began_together m/w4 m/best || fail "there is room for both: $(cat err)"
plan 2 500000000 run zoo.json --device cuda:0 --jobs 2
! began_together m/w4 m/best || fail "both are more than the card, with a context each: $(cat err)"
sed 's/"devices"/"limits": {"device_bytes": 300000000}, &/' zoo.json >less.json
plan 2 20000000000 run less.json --device cuda:0 --jobs 2
! began_together m/w4 m/best || fail "both are more than is allowed: $(cat err)"
# Another card has room; by another name it is the same.
sed 's/"cuda:0", "cpu"/"cuda", "cuda:0"/' less.json >same.json
plan 2 20000000000 run same.json
! began_together m/w4 m/best || fail "a card has two names: $(cat err)"
sed 's/"cuda:0", "cpu"/"cuda:0", "cuda:1"/' less.json >two.json
plan 2 20000000000 run two.json
began_together m/w4 m/best || fail "there are two cards: $(cat err)"
# A card that the manifest names and that is not here is left to the run.
sed -i 's/"cuda:0", "cpu"/"cuda:7"/' zoo.json
plan 0 40000000 plan zoo.json
