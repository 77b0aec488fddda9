# ingot-convert --target-bpw: sizes, the kept table, what it gains over one width, and refusals.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify

text=$MODEL/calibration.txt
few="--text $text --samples 4 --seq-len 64 --threads 2"

# number KEY FILE: the value of a key of a --json output, where it is first.
number() {
    sed -n "s/^ *\"$1\": \([-0-9.e]*\),*$/\1/p" "$2" | head -n 1
}

# within TARGET FILE: the size is at most the target and at most 0.5 % under it.
within() {
    awk -v t="$1" -v b="$(number bits_per_weight "$2")" 'BEGIN { exit !(b <= t && b >= 0.995 * t) }' ||
        fail "$(number bits_per_weight "$2") bits per weight for a target of $1"
}

# The plan shows the choice and why; without an output nothing is kept.
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" --dry-run --target-bpw 4.31 $few
grep -q 'plan: target 4.310 bits per weight: ' out || fail "the plan does not name the target"
grep -q 'v_proj.weight .* [2-8] bits, .*: KL [0-9.e-]*, at [2-7] bits [0-9.e-]*)' out ||
    fail "the plan does not say why"
grep -q 'measured the sensitivity of 28 matrices' err || fail "nothing was measured"
[ -z "$(find . -name '*.sens')" ] || fail "a dry run without output kept a table"

# The first target measures, the second reads; any method; the same bytes for any threads.
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o rtn.ingot --method rtn --target-bpw 4.125 $few --json
grep -q 'measured the sensitivity' err || fail "nothing was measured"
within 4.125 out
cp rtn.sens first.sens
for target in 2.3 3.5 4.31 4.8 6.5 8; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert "$MODEL" --dry-run --target-bpw $target $few --json \
        --sensitivity rtn.sens
    within $target out
    grep -q 'plan: sensitivities from rtn.sens' err || fail "the table was not used"
    ! grep -q 'measured' err || fail "a second pass was made"
done
# A size that --json printed, given back, is met to the byte: of these, and of the choices a little
# under 4.245 and 4.495, doubles have 8 bytes / weights a little under what it stands for.
for target in 4.245 4.495 3.5; do
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert "$MODEL" --dry-run --target-bpw $target $few --json \
        --sensitivity rtn.sens
    size=$(number bits_per_weight out)
    # shellcheck disable=SC2086
    expect_exit 0 ingot-convert "$MODEL" --dry-run --target-bpw "$size" $few --json \
        --sensitivity rtn.sens
    [ "$(number bits_per_weight out)" = "$size" ] ||
        fail "$(number bits_per_weight out) bits per weight for a target of $size, which there is"
done
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o gptq.ingot --target-bpw 3.5 $few --sensitivity rtn.sens
expect_exit 0 ingot-verify gptq.ingot --source "$MODEL"
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" -o again.ingot --target-bpw 3.5 --text "$text" --samples 4 \
    --seq-len 64 --threads 1
cmp gptq.ingot again.ingot || fail "a measured and a kept table, or threads, give other bytes"
cmp first.sens again.sens || fail "the table is not the same every time"
cmp first.sens rtn.sens || fail "a table that was read was changed"

# At the size of one width everywhere it loses less.
expect_exit 0 ingot-convert "$MODEL" -o uniform.ingot --method rtn --bits 4
# shellcheck disable=SC2043
for name in rtn uniform; do
    expect_exit 0 ingot-verify $name.ingot --source "$MODEL" --text "$MODEL/evaluation.txt" --windows 4 \
        --seq-len 256 --json
    number kld_mean out >$name.kl
done
awk -v a="$(cat rtn.kl)" -v b="$(cat uniform.kl)" 'BEGIN { exit !(a < b) }' ||
    fail "KL $(cat rtn.kl) with chosen widths, $(cat uniform.kl) with 4 bits everywhere"

# Ends keep the width they were asked for, a rule states widths, and both count.
echo '{"tensors": [{"pattern": "*.o_proj.weight", "bits": 8}], "target_bpw": 4.5}' >recipe.json
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" --dry-run --recipe recipe.json --embed-bits 5 -o ends.ingot $few
[ "$(grep -c 'o_proj.weight .* 8 bits' out)" = 4 ] || fail "a stated width was changed"
grep -q 'embed_tokens.weight .* 5 bits' out || fail "the embedding's width was changed"
[ -e ends.sens ] || fail "a dry run with an output did not keep the table"
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" --dry-run --recipe recipe.json --embed-bits 5 -o ends.ingot \
    $few --json
within 4.5 out

# A table of something else is measured again; what is no table is left alone.
# shellcheck disable=SC2086
expect_exit 0 ingot-convert "$MODEL" --dry-run --target-bpw 4.5 $few --group 64 \
    --sensitivity again.sens
grep -q 'again.sens was measured on other windows, matrices, groups or outliers' err ||
    fail "a stale table was not noticed"
cp "$text" other.txt
echo >>other.txt
expect_exit 0 ingot-convert "$MODEL" --dry-run --target-bpw 4.5 --text other.txt --samples 4 \
    --seq-len 64 --group 64 --sensitivity again.sens
grep -q 'again.sens was measured on another text' err || fail "a foreign table was not noticed"
sed 's/"kl":\["/"kl":["1/' first.sens >edited.sens
head -c 700 first.sens >cut.sens
cp recipe.json foreign.sens
for name in edited cut foreign; do
    cp $name.sens before
    # shellcheck disable=SC2086
    expect_exit 2 ingot-convert "$MODEL" -o $name.ingot --target-bpw 4.5 $few
    expect_error "$name.sens"
    expect_error "no whole sensitivity table"
    cmp $name.sens before || fail "a foreign file was changed"
    expect_no_files $name.ingot
done

# Contradictions.
while read -r options; do
    # shellcheck disable=SC2086
    expect_exit 2 ingot-convert "$MODEL" -o refused.ingot $options
    expect_error ":"
    expect_no_files refused.ingot refused.sens
done <<END
--target-bpw 4.5
--target-bpw 4.5 --method rtn
--target-bpw 4.5 --bits 4 $few
--target-bpw 1.9 $few
--target-bpw 9 $few
--target-bpw x $few
--sensitivity x.sens $few
--target-bpw 4.5 $few --sensitivity refused.ingot
END
# shellcheck disable=SC2086
expect_exit 2 ingot-convert "$MODEL" -o low.ingot --target-bpw 2.05 $few --sensitivity rtn.sens
expect_error "the nearest is 2.125"
expect_no_files low.ingot
