# --zstd and --shard-size from end to end: the same content whatever the form, read by every tool; a
# missing, swapped or foreign shard is named.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify ingot-inspect ingot-run

# content_of FILE: its content id.
content_of() {
    ingot-inspect "$1" --json | sed -n 's/.*"content_id": "\([0-9a-f]*\)".*/\1/p'
}

ingot-convert "$MODEL" -o plain.ingot --method rtn >out 2>err
plain=$(content_of plain.ingot)
[ ${#plain} = 32 ] || fail "no content id: $plain"
ingot-run plain.ingot --prompt "The old captain" -n 4 >plain.text 2>err

# whole FILE: valid, with the content of plain.ingot, and the same text.
whole() {
    expect_exit 0 ingot-verify "$1" --source "$MODEL" --json
    grep -q '"valid": true' out || fail "$1 is not valid"
    [ "$(content_of "$1")" = "$plain" ] || fail "$1 has another content"
    expect_exit 0 ingot-inspect plain.ingot --compare "$1"
    ingot-run "$1" --prompt "The old captain" -n 4 >text 2>err
    cmp plain.text text || fail "$1 gives another text"
}

ingot-convert "$MODEL" -o packed.ingot --method rtn --zstd >out 2>err
whole packed.ingot
[ "$(wc -c <packed.ingot)" -lt "$(wc -c <plain.ingot)" ] || fail "--zstd did not make it smaller"

for form in "" --zstd; do
    name=set$form
    # shellcheck disable=SC2086
    ingot-convert "$MODEL" -o "$name.ingot" --method rtn --shard-size 700K $form --json >json 2>err
    first=$(ls "$name"-00001-of-*.ingot)
    grep -qF "\"output\": \"$first\"" json || fail "the output is not named: $(grep output json)"
    bytes=$(cat "$name"-0*.ingot | wc -c)
    grep -qE "\"bytes\": $bytes(,|\$)" json || fail "not $bytes bytes: $(grep '"bytes"' json)"
    for shard in "$name"-0*.ingot; do whole "$shard"; done
done
first=$(ls set-00001-of-*.ingot)
second=$(ls set-00002-of-*.ingot)
third=$(ls set-00003-of-*.ingot)

# refused CODE FILE: verification of the set says CODE and names FILE, whichever shard is given.
refused() {
    for shard in "$first" "$third"; do
        [ "$shard" != "$2" ] || [ -e "$shard" ] || continue
        expect_exit 1 ingot-verify "$shard" --json
        grep -qF "\"$1\"" out || fail "$shard: not $1: $(grep '"error' out)"
        expect_error "$2"
    done
}

mv "$second" kept
refused E_SHARD_MISSING "$second"
cp "$third" "$second" # swapped
refused E_SHARD "$second"
ingot-convert "$MODEL" -o other.ingot --method rtn --seed 1 --shard-size 700K >out 2>err
cp "$(ls other-00002-of-*.ingot)" "$second" # of another set
refused E_SHARD "$second"
cp "$(ls set--zstd-00002-of-*.ingot)" "$second" # the same content, compressed
refused E_SHARD "$second"
cp kept "$second"
head -c 100000 "$second" >cut && cp cut "$second"
refused E_FILE_SIZE "$second"
cp kept "$second"
size=$(wc -c <"$second")
printf 'X' | dd of="$second" bs=1 seek=$((size - 5000)) conv=notrunc status=none
cmp -s kept "$second" && fail "the damage changed nothing"
expect_exit 1 ingot-verify "$first" --json
grep -qE '"E_(CHUNK_DIGEST|DATA_GAP)"' out || fail "$(grep '"error' out)"
expect_error "$second"
cp kept "$second"
mv "$first" kept
expect_exit 1 ingot-verify "$third"
expect_error "$first"
mv kept "$first"
whole "$first"

# The limit of open files is known before the work, not after it, and raised where that is allowed.
expect_exit 2 sh -c 'ulimit -n 68 && exec ingot-convert "$@"' sh "$MODEL" -o many.ingot --method rtn \
    --shard-size 700K
expect_error "open files"
grep -q '^block' err && fail "the error came after the work"
expect_no_files many
(ulimit -S -n 24 && ingot-convert "$MODEL" -o many.ingot --method rtn --shard-size 100K >out 2>err) ||
    { cat err >&2; fail "the limit was not raised"; }
whole "$(ls many-00002-of-*.ingot)"

# An existing set is not touched without --force, and replaced as a whole with it.
expect_exit 2 ingot-convert "$MODEL" -o set.ingot --method rtn --shard-size 700K
expect_error exists
whole "$first"
expect_exit 0 ingot-convert "$MODEL" -o set.ingot --method rtn --shard-size 700K --seed 1 --force
cmp "$first" "$(ls other-00001-of-*.ingot)"
[ -z "$(ls ./*.replaced 2>/dev/null)" ] || fail "the old set was left"
