# ingot-inspect --compare: two conversions side by side, by role and by tensor.
. "$INGOT_ROOT/tests/lib.sh"

for bits in 4 3; do
    ingot-convert "$MODEL" -o $bits.ingot --bits $bits --method rtn >/dev/null 2>&1 || fail "conversion"
done
expect_exit 0 ingot-inspect 4.ingot --compare 3.ingot
sed '1,/^Compared with/d' out >compared
grep -q 'bits per weight  4.1250 | 3.1250' compared || fail "no bits"
# one line a role that is quantized: smaller errors at 4 bits
awk '/^model\.layers\.\*\..*_proj\.weight/ { n++; if (!($4 == "g128" && $8 == "g128" && $9 + 0 < $11 + 0)) bad = 1 }
    END { exit bad || n != 7 }' compared || { cat compared >&2; fail "roles are not side by side"; }
[ "$(grep -c '^! model' compared)" = 28 ] || fail "not every tensor"

# A tied head is as different as the embedding that it is: here in the first byte of the weights.
cp -R "$MODEL" other
chmod -R u+w other
header=$(od -An -tu8 -N 8 other/model.safetensors | tr -d ' ')
printf 'x' | dd of=other/model.safetensors bs=1 seek=$((8 + header)) conv=notrunc status=none
ingot-convert other -o other.ingot --method rtn >/dev/null 2>&1 || fail "conversion"
expect_exit 0 ingot-inspect 4.ingot --compare other.ingot
grep '^! ' out >changed || :
printf '! %s\n' 'model.embed_tokens.weight  data ledger' 'lm_head.weight  data' >expected
sed 's/ (error.*//' changed | cmp - expected || { cat changed >&2; fail "other tensors differ"; }
