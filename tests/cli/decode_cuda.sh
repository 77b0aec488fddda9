# Decoding on a CUDA device beside the CPU: greedy text of checkpoints and of containers, perplexity
# of containers, and the ids of examples/decode, also with biases, norms of heads and windows.
# Skipped without a device.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-run ingot-verify python3
need_cuda

# INGOT_DECODE names the example where there is no compiler.
example=${INGOT_DECODE:-}
if [ -z "$example" ] && command -v cc >/dev/null; then
    example=$PWD/decode
    cc -std=c11 -O2 -I"$INGOT_ROOT/format" -I"$INGOT_ROOT/common" -I"$INGOT_ROOT/kernels" \
        -o "$example" "$INGOT_ROOT/examples/decode/decode.c" "$INGOT_BUILD/libingot_kernels.a" \
        "$INGOT_BUILD/libingot.a" -lxxhash -lzstd -ldl -lm -Wl,-rpath,"$INGOT_BUILD/lib"
fi
[ -n "$example" ] || echo "SKIP: examples/decode, there is no compiler"

# proof FOLDER GROUP TEXT PROMPT [ID...]: the ids are the prompt's.
proof() {
    name=$(basename "$1") folder=$1 group=$2 text=$3 prompt=$4
    shift 4
    head -c 400000 "$text" >text.txt
    expect_exit 0 ingot-convert "$folder" -o "$name.ingot" --text text.txt --samples 8 \
        --seq-len 512 --group "$group"
    for device in cpu cuda; do
        expect_exit 0 ingot-run "$folder" --prompt "$prompt" -n 256 --device $device --json
        mv out "$name.$device.source"
        expect_exit 0 ingot-run "$name.ingot" --prompt "$prompt" -n 256 --device $device --json
        mv out "$name.$device.run"
        expect_exit 0 ingot-verify "$name.ingot" --text text.txt --seq-len 512 --windows 16 \
            --device $device --json
        mv out "$name.$device.verify"
    done
    python3 - "$name" <<'EOF' || fail "$name: the device does not do what the CPU does"
import json, sys

name = sys.argv[1]
a, b = (json.load(open(f"{name}.{d}.verify"))["perplexity"] for d in ("cpu", "cuda"))
print(f"{name}: perplexity {a:.4f} and {b:.4f}")
assert abs(b / a - 1) < 5e-4
for what, suffix in ("checkpoint", "source"), ("container", "run"):
    cpu, cuda = (json.load(open(f"{name}.{d}.{suffix}"))["token_ids"] for d in ("cpu", "cuda"))
    same = next((i for i, (a, b) in enumerate(zip(cpu, cuda)) if a != b), min(len(cpu), len(cuda)))
    print(f"{name}, {what}: {same} of {len(cpu)} ids are the CPU's")
    # Behind a difference stands another text.  Whether the two best logits were close enough for
    # it is test_cuda_engine's question (INGOT_ENGINE_MODELS); this sees what is broken at once.
    assert same == len(cpu) == len(cuda) or same >= 32
EOF
    if [ -n "$example" ] && [ $# != 0 ]; then
        "$example" "$name.ingot" 256 "$@" >"$name.example" || fail "$name: the example"
        python3 - "$name" <<'EOF' || fail "$name: the example does not write what ingot-run writes"
import json, sys

name = sys.argv[1]
expected = json.load(open(f"{name}.cuda.run"))["token_ids"]
got = [int(word) for word in open(f"{name}.example").read().split()]
assert len(got) == 256 and got[: len(expected)] == expected
EOF
        echo "$name: the example writes what ingot-run writes"
    fi
}

# ids_of FOLDER: of the prompt, as its reference.json has them; nothing where there is none.
ids_of() {
    [ ! -e "$1/reference.json" ] || python3 -c 'if True:
        import json, sys
        reference = json.load(open(sys.argv[1]))
        print(*reference.get("prompts", [reference])[0]["ids"])' "$1/reference.json"
}
# follows NAME MOST: behind each of some prefixes of a fixture's ids, up to MOST, the example writes
# the id that transformers does.
follows() {
    cp -r "$INGOT_ROOT/tests/fixtures/$1" .
    sed -i 's/"use_sliding_window": true/"use_sliding_window": false/' "$1/config.json"
    echo '{"defaults": {"method": "keep"}}' >keep.json
    expect_exit 0 ingot-convert "$1" -o "$1.ingot" --recipe keep.json
    for n in 3 5 8 9 14 20 33 44 48; do
        [ $n -le "$2" ] || break
        # shellcheck disable=SC2046
        expect_exit 0 "$example" "$1.ingot" 1 $(python3 -c 'if True:
            import json, sys
            print(*json.load(open(sys.argv[1]))["ids"][:int(sys.argv[2])])' "$1/expected.json" $n)
        best=$(python3 -c 'if True:
            import json, sys
            print(json.load(open(sys.argv[1]))["argmax"][int(sys.argv[2]) - 1])' "$1/expected.json" $n)
        [ "$(cat out)" = "$best" ] || fail "$1: behind $n ids the example writes $(cat out), not $best"
    done
    echo "$1: the example writes what transformers does"
}
if [ -n "$example" ]; then
    follows tiny-mistral 48
    follows tiny-qwen2 9 # behind these transformers has a window
    follows tiny-qwen3 48
fi

prompt="The old captain looked at the sea and"
# shellcheck disable=SC2046
proof "$MODEL" 128 "$MODEL/calibration.txt" "$prompt" $(ids_of "$MODEL")
shared=$INGOT_SHARED/models texts=$INGOT_SHARED/corpora
if [ -d "$shared/books-28m" ]; then
    # shellcheck disable=SC2046
    proof "$shared/books-28m" 128 "$texts/books-eval.txt" "$prompt" $(ids_of "$shared/books-28m")
    proof "$shared/stories-260k" 32 "$texts/tinystories.txt" "Once upon a time" 403 407 261 378
else
    echo "SKIP: $shared/books-28m is not there"
fi
if [ -n "${INGOT_SMOLLM2:-}" ]; then
    # shellcheck disable=SC2046
    proof "$INGOT_SMOLLM2" 32 "$texts/wikitext2-test.txt" "$prompt" $(ids_of "$INGOT_SMOLLM2")
else
    echo "SKIP: smollm2-135m, INGOT_SMOLLM2 does not name its folder"
fi

# the measurement of a token, whose logits are compared with a prompt's in the same run
for json in "" --json; do
    expect_exit 0 ingot-bench decode --shape tiny --device cuda --runs 1 $json
    mv out "bench$json"
done
python3 - <<'EOF' || fail "ingot-bench decode --json"
import json

figures = json.load(open("bench--json"))["figures"]
for batch in 1, 16:
    assert 0 <= figures[f"batch_{batch}_error"] < 0.05, figures
    assert figures[f"batch_{batch}_context_128_tokens_per_second"] > 0, figures
EOF
grep -q "of limit" bench || fail "ingot-bench decode"
