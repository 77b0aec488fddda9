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
