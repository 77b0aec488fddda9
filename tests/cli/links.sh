# Outputs whose names are symbolic links, as of models that are kept on another disk: the file behind
# the link is made or replaced, with all that work needs beside it, and the link stays.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-calib ingot-verify

head -c 20000 "$MODEL/calibration.txt" >text.txt
mkdir disk other
ln -s disk/model.ingot model.ingot

# behind LINK FILE...: LINK is one, and its folder and disk have no more than these.
behind() {
    link=$1
    shift
    [ -L "$link" ] || fail "$link was replaced"
    [ "$(ls disk)" = "$(printf '%s\n' "$@")" ] || fail "behind the link there is $(ls disk)"
    [ -z "$(find . -name '*.partial' -o -name '*.resume')" ] || fail "left behind: $(find .)"
}

# json_output NAME: the object names the output as it was given.
json_output() {
    grep -qF "\"output\": \"$1\"" out || fail "another name: $(grep '"output":' out)"
}

# ---- a link that leads nowhere, then to a file: with --force alone that is replaced ----
expect_exit 0 ingot-convert "$MODEL" -o model.ingot --method rtn --json
json_output model.ingot
behind model.ingot model.ingot
expect_exit 2 ingot-convert "$MODEL" -o model.ingot --method rtn --bits 8
expect_error exists
before=$(cksum <disk/model.ingot)
ln disk/model.ingot kept
expect_exit 0 ingot-convert "$MODEL" -o model.ingot --method rtn --bits 8 --force
behind model.ingot model.ingot
expect_exit 0 ingot-verify model.ingot --source "$MODEL"
[ "$(cksum <kept)" = "$before" ] || fail "the file was written over, not replaced"
[ "$(cksum <disk/model.ingot)" != "$before" ] || fail "the file was not replaced"

# ---- interrupted, and gone on with by the link or by the file's own name ----
for name in model.ingot disk/model.ingot; do
    code=0
    env INGOT_TEST_KILL_WRITE=60 sh -c 'exec "$@" >out 2>err </dev/null' - ingot-convert "$MODEL" \
        -o model.ingot --text text.txt --samples 2 --seq-len 64 --resume --force 2>killed || code=$?
    [ "$code" = 137 ] || { cat err >&2; fail "the conversion was not killed: $code"; }
    [ -e disk/model.ingot.partial ] && [ -e disk/model.ingot.resume ] && [ "$(echo model*)" = model.ingot ] ||
        fail "not beside the file: $(find .)"
    expect_exit 0 ingot-convert "$MODEL" -o "$name" --text text.txt --samples 2 --seq-len 64 \
        --resume --force
    grep -q 'finished before' err || fail "begun anew: $(cat err)"
    behind model.ingot model.ingot
done
expect_exit 0 ingot-convert "$MODEL" -o model.ingot --text text.txt --samples 2 --seq-len 64 --resume
grep -q 'complete' err out || fail "the result was not found: $(cat err out)"
behind model.ingot model.ingot
rm disk/model.ingot

# ---- statistics and the page ----
ln -s disk/model.calib model.calib
for force in "" --force; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-calib "$MODEL" --text text.txt -o model.calib --samples 2 --seq-len 64 $force
    behind model.calib model.calib
done
expect_exit 0 ingot-calib "$MODEL" --text text.txt -o model.calib --samples 2 --seq-len 64 --reuse --json
grep -q '"reused": true' out || fail "not reused: $(cat out)"
ln -s disk/page.html page.html
expect_exit 0 ingot-verify model.calib --html page.html
expect_exit 0 ingot-verify model.calib --html page.html
behind page.html model.calib page.html
rm disk/*

# ---- sets: all shards behind links into one folder, under their own names ----
convert_set() {
    ingot-convert "$MODEL" -o set.ingot --method rtn --shard-size 1000000 --force --json "$@"
}
expect_exit 0 convert_set
shards=$(ls set-*)
for shard in $shards; do
    mv "$shard" disk
    ln -s "disk/$shard" "$shard"
done
first=${shards%%.ingot*}.ingot
ln "disk/$first" kept-shard
expect_exit 0 convert_set
json_output "$first"
# shellcheck disable=SC2086
behind "$first" $shards
[ -n "$(find "disk/$first" -newer kept-shard)" ] || fail "the set was not replaced"
expect_exit 0 ingot-verify "$first" --source "$MODEL"
mv "disk/$first" other
ln -sf "other/$first" "$first"
expect_exit 2 convert_set
expect_error "do not lead into one folder"
[ -z "$(find . -name '*.partial')" ] || fail "a partial file was left"
rm disk/* other/*

# ---- nothing to write to ----
ln -s circle circle
expect_exit 2 ingot-convert "$MODEL" -o circle --method rtn --force
expect_error "circle: symbolic links lead in a circle"
ln -s none/model.ingot nowhere.ingot
expect_exit 2 ingot-convert "$MODEL" -o nowhere.ingot --method rtn --force
expect_error "create its folder first"
