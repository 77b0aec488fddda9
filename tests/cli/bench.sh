# ingot-bench: figures of a small container, wrong usage, nothing left behind.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-bench ingot-convert

expect_exit 0 ingot-bench verify --size 20M --runs 1 --json
for key in bytes memory_read_gbps disk_read_gbps verify_disk_gbps cached_read_gbps \
    verify_cached_gbps open_milliseconds; do
    grep -qE "\"$key\": [0-9.e+-]*[1-9]" out || fail "no $key: $(cat out)"
done
grep -q '"open_tensors": 10000' out || fail "another number of tensors"
grep -q '"error": null' out || fail "an error: $(cat out)"
[ -z "$(ls ./*.ingot* 2>/dev/null)" ] || fail "left behind: $(ls)"

expect_exit 0 ingot-bench verify --size 2M --runs 1 --device cpu --json
expect_exit 2 ingot-bench verify --size 2M --device cuda --json
expect_error "--device cpu"
grep -q '"figures": null' out || fail "figures without one: $(cat out)"
grep -q '"error": "E_UNSUPPORTED"' out || fail "$(cat out)"
expect_exit 2 ingot-bench verify --size 2M --device banana --json
grep -q '"error": "E_USAGE"' out || fail "$(cat out)"
expect_exit 2 ingot-bench verify --file none.ingot
expect_error none.ingot
expect_exit 2 ingot-bench verify --folder none --size 2M
expect_error none
# What has the name of a generated file is somebody's: nothing is done to it.
for name in ingot-bench.ingot ingot-bench-many.ingot ingot-bench-convert.ingot; do
    echo mine >$name
    case $name in
        *convert*) set -- convert --model "$MODEL" --methods rtn --device cpu ;;
        *) set -- verify --size 2M ;;
    esac
    expect_exit 2 ingot-bench "$@" --runs 1 --json
    expect_error "$name: a file has the name of one that is to be generated (move it away"
    grep -q '"error": "E_EXISTS"' out || fail "$(cat out)"
    [ "$(cat $name)" = mine ] || fail "$name was written over"
    rm $name
    [ -z "$(ls ./*.ingot* 2>/dev/null)" ] || fail "left behind: $(ls)"
done
for wrong in "" "banana" "verify --size 5" "verify --threads 0" "verify --banana"; do
    # shellcheck disable=SC2086
    expect_exit 2 ingot-bench $wrong
    expect_error ":"
done

# A file of one's own is measured and stays; a damaged one is refused.
ingot-convert "$MODEL" -o m.ingot --method rtn >out 2>err
before=$(cksum <m.ingot)
expect_exit 0 ingot-bench verify --file m.ingot --runs 1 --threads 3
grep -q verify_disk_gbps out || fail "no figures: $(cat out)"
[ "$(cksum <m.ingot)" = "$before" ] || fail "the file was changed"
printf 'X' | dd of=m.ingot bs=1 seek=300000 conv=notrunc status=none
expect_exit 1 ingot-bench verify --file m.ingot --runs 1
expect_error m.ingot
# What is checked with other files has no rate of its own; a pipe is not waited for.
ingot-convert "$MODEL" -o set.ingot --method rtn --shard-size 700K >out 2>err
expect_exit 2 ingot-bench verify --file "$(ls set-00002-of-*.ingot)" --runs 1 --json
expect_error "shards"
grep -q '"error": "E_UNSUPPORTED"' out || fail "one shard of a set: $(cat out)"
mkfifo pipe
expect_exit 2 timeout -s KILL 20 ingot-bench verify --file pipe --json
expect_error "pipe: is not a regular file"

# Conversions: phases beside floors, from the cache and, where files do not live in memory, the disk.
expect_exit 0 ingot-bench convert --model "$MODEL" --text "$MODEL/calibration.txt" --samples 4 \
    --seq-len 64 --methods gptq,rtn --device cpu --threads 1 --runs 1 --json
for key in product_tflops cached_read_gbps disk_write_gbps forward_fraction floor_fraction; do
    grep -qE "\"$key\": [0-9.e+-]*[1-9]" out || fail "no $key: $(cat out)"
done
grep -q '"tokens": 256.0' out || fail "another number of tokens: $(cat out)"
[ "$(grep -c '"source": "cache"' out)" = 2 ] || fail "not two methods: $(cat out)"
# Several devices, and a few blocks of a larger model.
expect_exit 0 ingot-bench convert --model "$MODEL" --text "$MODEL/calibration.txt" --samples 4 \
    --seq-len 64 --methods gptq --device cpu --threads 1 --runs 1 --devices cpu,cpu \
    --slice "$MODEL" --slice-blocks 10 --json
grep -qE '"devices_speedup": [0-9.]*[1-9]' out || fail "no speedup: $(cat out)"
grep -q '"devices": "cpu,cpu"' out || fail "no run on two devices: $(cat out)"
# 4 of 10 blocks: six more of them on top of what was measured
sed -n 's/^ *"\(blocks\|of_blocks\|seconds\|block_seconds\|whole_seconds\)": \([0-9.e+-]*\).*/\1 \2/p' out |
    awk '$1 == "blocks" { in_slice = 1 } { v[$1] = $2 } END {
        d = v["whole_seconds"] - v["seconds"] - 6 * v["block_seconds"]
        exit !(v["blocks"] == 4 && v["of_blocks"] == 10 && v["block_seconds"] > 0 && d < 1e-6 && d > -1e-6) }' ||
    fail "the extrapolation is not what it says: $(cat out)"
expect_exit 2 ingot-bench convert --model "$MODEL" --methods rtn --device cpu --runs 1 --slice none
expect_error none
# What was measured is kept when a later measurement fails, or is interrupted.
grep -qE '^  rtn +one +cache ' out || fail "a slice that fails takes the rest along: $(cat out)"
rm err # the last run's has the line that is waited for
ingot-bench convert --model "$MODEL" --text "$MODEL/calibration.txt" --methods rtn,gptq \
    --device cpu --threads 1 --runs 1 --json >out 2>err &
bench=$!
await grep -qs '^rtn from the page cache: .* s left$' err
kill $bench
code=0
wait $bench || code=$?
[ $code = 2 ] || fail "interrupted, but no exit code 2"
grep -q '"error": "E_INTERRUPTED"' out && grep -q '"method": "rtn"' out ||
    fail "what was measured before an interruption is lost: $(cat out)"
[ -z "$(ls ./*bench* 2>/dev/null)" ] || fail "left behind by an interruption: $(ls)"
# Whatever becomes of it, no conversion is left running.
await_conversion() { # of $bench: $child, once it writes
    await convert_of $bench >pid
    child=$(cat pid)
    await_file ingot-bench-convert.ingot.partial "$child"
}
for signal in KILL TERM INT; do
    (
        trap - INT
        exec ingot-bench convert --model "$MODEL" --text "$MODEL/calibration.txt" --methods gptq \
            --device cpu --threads 1 --runs 1 >out 2>err
    ) &
    bench=$!
    await_conversion
    kill -$signal $bench
    wait $bench || :
    await has_ended "$child"
    [ -z "$(ls ./*bench* 2>/dev/null)" ] || fail "left behind by SIG$signal: $(ls)"
done
# A conversion that is killed is no wrong usage; what one reports has its own code.
ingot-bench convert --model "$MODEL" --text "$MODEL/calibration.txt" --methods gptq --device cpu \
    --threads 1 --runs 1 --json >out 2>err &
bench=$!
await_conversion
kill -KILL "$child"
code=0
wait $bench || code=$?
[ $code = 2 ] || fail "exit code $code after a conversion that was killed"
expect_error "killed by signal 9"
grep -q '"error": "E_INTERNAL"' out || fail "$(cat out)"
[ -z "$(ls ./*bench* 2>/dev/null)" ] || fail "left behind by a conversion that was killed: $(ls)"
cp -R "$MODEL" cut
chmod -R u+w cut
printf 'too few words' >cut/text
expect_exit 2 ingot-bench convert --model cut --text cut/text --seq-len 64 --methods gptq \
    --device cpu --runs 1 --json
grep -q '"error": "E_INPUT"' out || fail "$(cat out)"
expect_exit 0 ingot-bench convert --model "$MODEL" --methods rtn --device cpu --runs 1
grep -qE '^  finish +[0-9.]+ s' out || fail "no phases: $(cat out)"
mv cut -- -cut
expect_exit 0 ingot-bench convert --model -cut --methods rtn --device cpu --runs 1
[ -z "$(ls ./*bench* 2>/dev/null)" ] || fail "left behind: $(ls)"
for wrong in "" "--model $MODEL" "--model none" "--model $MODEL --methods rtn,banana --device cpu" \
    "--model $MODEL --methods rtn --device cuda:999" "--model $MODEL --text none" \
    "--model $MODEL --methods rtn --shape tiny"; do
    # shellcheck disable=SC2086
    expect_exit 2 ingot-bench convert --runs 1 $wrong
    expect_error ":"
done
[ -z "$(ls ./*bench* 2>/dev/null)" ] || fail "left behind after errors: $(ls)"
# Want of memory is an error wherever it is met, also where no sentence says so.
for n in 1 2 3 4 5; do
    expect_exit 2 env INGOT_TEST_FAIL_ALLOC=$n ingot-bench convert --model "$MODEL" --methods rtn --json
    expect_error "out of memory"
    grep -q '"error": "E_NO_MEMORY"' out || fail "allocation $n: $(cat out)"
done
# A value that looks like an option is a value; what has nothing to be about is refused.
expect_exit 2 ingot-bench convert --text --shape --model "$MODEL"
expect_error "--shape: cannot open"
expect_exit 2 ingot-bench decode --shape banana
expect_error "unknown shape"
expect_exit 2 ingot-bench decode --shape tiny --file m.ingot
expect_error "--shape describes what is generated"
expect_exit 2 ingot-bench decode --head-bits 16 --file m.ingot
expect_error "--head-bits describes what is generated"
expect_exit 2 ingot-bench decode --shape tiny --head-bits 5
expect_error "--head-bits is 4 or 16"
expect_exit 2 ingot-bench verify --size 2M --file m.ingot
expect_error "--size describes what is generated"
expect_exit 2 ingot-bench convert --model "$MODEL" --methods rtn --slice-blocks 4
expect_error "--slice MODEL_DIR"
for option in "--samples 4" "--seq-len 64"; do
    # shellcheck disable=SC2086
    expect_exit 2 ingot-bench convert --model "$MODEL" --methods rtn --device cpu --runs 1 $option
    expect_error "${option% *} says how to cut a text, but there is none (add --text FILE)"
done
expect_exit 2 ingot-bench verify --model="$MODEL" --json
expect_error "--model is an option of convert, not of verify"
grep -q '"error": "E_USAGE"' out || fail "$(cat out)"

# Products, on the processor: right, and beside what its memory delivers.
expect_exit 0 ingot-bench kernels --device cpu --runs 1 --json
for key in read_gbps limit_us us of_read error; do
    grep -qE "\"$key\": [0-9.e+-]*[1-9]" out || fail "no $key: $(cat out)"
done
expect_exit 0 ingot-bench kernels --device cpu --runs 1
grep -q '4096 x 4096' out || fail "no table: $(cat out)"
# Others than those, one by one; nothing is measured of a list with a mistake.
expect_exit 0 ingot-bench kernels --device cpu --runs 1 --products 256x512,64x128:8,40x384:3:1 --json
[ "$(grep -c '"of_read"' out)" = 3 ] || fail "not three products: $(cat out)"
grep -q '"rows": 40' out || fail "not the third: $(cat out)"
for wrong in 256 256x512: 256x512:9 256x100 0x128 256x512:4:1:banana 256x512:4:1:handedx 256x512,, ,256x512 256x512:4:1:handed:1 '' \
    -1x128 256x512:4:0 99999999999999999999x128; do
    expect_exit 2 ingot-bench kernels --device cpu --runs 1 --products "$wrong" --json
    expect_error "products"
    grep -q '"error": "E_USAGE"' out || fail "$wrong: $(cat out)"
    ! grep -q of_read out || fail "$wrong: measured: $(cat out)"
done
for large in 256x512:4:16 256x512:4:1:handed 1048576x1048576; do
    expect_exit 2 ingot-bench kernels --device cpu --runs 1 --products "$large" --json
    expect_error "the cpu measures"
done
# Groups and zero points as asked for, of products that are asked for.
expect_exit 0 ingot-bench kernels --device cpu --runs 1 --products 256x512,64x96:8 --group 32 --asym --json
[ "$(grep -c '"group": 32' out)" = 2 ] || fail "not groups of 32: $(cat out)"
[ "$(grep -c '"stored_zeros": true' out)" = 2 ] || fail "no zero points: $(cat out)"
expect_exit 2 ingot-bench kernels --device cpu --runs 1 --products 256x512 --group 96
expect_error "groups of 96"
expect_exit 2 ingot-bench kernels --device cpu --runs 1 --products 64x96 --group 12
expect_error "groups of 12"
for alone in '--group 32' --asym; do
    # shellcheck disable=SC2086 # an option and its value
    expect_exit 2 ingot-bench kernels --device cpu --runs 1 $alone
    expect_error "--products"
    # shellcheck disable=SC2086
    expect_exit 2 ingot-bench decode --file none.ingot $alone
    expect_error "generated"
    # shellcheck disable=SC2086
    expect_exit 2 ingot-bench verify $alone
    expect_error "${alone%% *}"
done
expect_exit 2 ingot-bench decode --products 256x512
expect_error "products"
expect_exit 2 ingot-bench kernels --device banana
expect_error banana
