#!/bin/sh
# The whole story on the shipped model: plan, conversion, verification against the source, text.
# Usage: examples/demo.sh BIN_DIR      (what `make demo` runs)
set -eu
bin=$1
model=examples/demo-4m
out=build/demo
prompt="The old captain looked at the sea and"
mkdir -p "$out"

say() {
    printf '\n\033[1m%s\033[0m\n' "$*"
}

say "1. What goes in: a checkpoint as save_pretrained writes it"
"$bin/ingot-inspect" "$model"

say "2. The plan: what becomes of every tensor, before any work"
"$bin/ingot-convert" "$model" -o "$out/gptq.ingot" --text "$model/calibration.txt" --force --dry-run |
    head -24

say "3. Plain rounding to 4 bits, as a yardstick"
"$bin/ingot-convert" "$model" -o "$out/rtn.ingot" --force

say "4. GPTQ with searched scales, calibrated block by block on $model/calibration.txt"
"$bin/ingot-convert" "$model" -o "$out/gptq.ingot" --text "$model/calibration.txt" --force

say "5. Is it whole, does it come from that checkpoint, and what did it lose?"
echo "--- plain rounding:"
"$bin/ingot-verify" "$out/rtn.ingot" --source "$model" --text "$model/evaluation.txt" |
    grep -E '^(size|perplexity|divergence|verdict)'
echo "--- GPTQ:"
"$bin/ingot-verify" "$out/gptq.ingot" --source "$model" --text "$model/evaluation.txt" \
    --html "$out/report.html"

say "6. The proof: text from the checkpoint and from the container"
echo "--- checkpoint:"
"$bin/ingot-run" "$model" --prompt "$prompt" -n 40
echo "--- container:"
"$bin/ingot-run" "$out/gptq.ingot" --prompt "$prompt" -n 40

say "Sizes"
wc -c "$model/model.safetensors" "$out/rtn.ingot" "$out/gptq.ingot" | head -3
echo
echo "report with pictures: $out/report.html"
