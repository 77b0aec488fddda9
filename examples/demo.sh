#!/bin/sh
# The whole story on the shipped model: plan, conversion, verification against the source, text.
# Usage: examples/demo.sh BIN_DIR      (what `make demo` runs; about a minute on 2 cores)
set -eu
bin=$1
model=examples/demo-4m
out=build/demo
prompt="The old captain looked at the sea and"
mkdir -p "$out"

if [ -t 1 ]; then
    bold=$(printf '\033[1m') plain=$(printf '\033[0m')
else
    bold="" plain=""
fi
say() {
    printf '\n%s%s%s\n\n' "$bold" "$*" "$plain"
}
size() {
    wc -c <"$1"
}
# figure FILE NAME: a number of the top level of a JSON object.
figure() {
    sed -n "s/^ \"$2\": \([-0-9.e+]*\),\{0,1\}\$/\1/p" "$1"
}

say "1. The source: a checkpoint as save_pretrained writes it"
"$bin/ingot-inspect" "$model" | sed -n '1,4p;/^Role/,$p'

say "2. The plan: what becomes of every tensor, before any work (--dry-run, first block)"
"$bin/ingot-convert" "$model" -o "$out/gptq.ingot" --text "$model/calibration.txt" --force \
    --dry-run | sed -n '1,11p;/^plan:/p' | sed '1d;s/  (linear of a block)//'

say "3. Conversion, 4 bits, groups of 128: plain rounding, as the yardstick"
"$bin/ingot-convert" "$model" -o "$out/rtn.ingot" --force

say "4. The same with GPTQ and searched scales, calibrated on $model/calibration.txt"
"$bin/ingot-convert" "$model" -o "$out/gptq.ingot" --text "$model/calibration.txt" --force

say "5. Is it whole, does it come from that checkpoint, and what did it lose on other text?"
head -n 100 "$model/tasks.jsonl" >"$out/tasks.jsonl"
"$bin/ingot-verify" "$out/rtn.ingot" --source "$model" --text "$model/evaluation.txt" \
    --tasks "$out/tasks.jsonl" --json >"$out/rtn.json"
"$bin/ingot-verify" "$out/gptq.ingot" --source "$model" --text "$model/evaluation.txt" \
    --tasks "$out/tasks.jsonl" --json --html "$out/report.html" >"$out/gptq.json"
"$bin/ingot-verify" "$out/gptq.ingot" --source "$model"

say "6. Both beside the source"
awk -v source="$(size "$model/model.safetensors")" \
    -v bytes_rtn="$(size "$out/rtn.ingot")" -v bytes_gptq="$(size "$out/gptq.ingot")" \
    -v bpw_rtn="$(figure "$out/rtn.json" bits_per_weight)" \
    -v bpw_gptq="$(figure "$out/gptq.json" bits_per_weight)" \
    -v ppl="$(figure "$out/gptq.json" source_perplexity)" \
    -v ppl_rtn="$(figure "$out/rtn.json" perplexity)" \
    -v ppl_gptq="$(figure "$out/gptq.json" perplexity)" \
    -v kld_rtn="$(figure "$out/rtn.json" kld_mean)" \
    -v kld_gptq="$(figure "$out/gptq.json" kld_mean)" \
    -v top_rtn="$(figure "$out/rtn.json" top1)" \
    -v top_gptq="$(figure "$out/gptq.json" top1)" \
    -v right="$(figure "$out/gptq.json" source_accuracy)" \
    -v right_rtn="$(figure "$out/rtn.json" accuracy)" \
    -v right_gptq="$(figure "$out/gptq.json" accuracy)" 'BEGIN {
    row = "%-28s %12s %15s %12s\n"
    printf row, "", "source", "plain rounding", "GPTQ"
    printf row, "bytes", source, bytes_rtn, bytes_gptq
    printf "%-28s %12d %15.3f %12.3f\n", "bits per quantized weight", 16, bpw_rtn, bpw_gptq
    printf "%-28s %12.4f %15.4f %12.4f\n", "perplexity", ppl, ppl_rtn, ppl_gptq
    printf "%-28s %12s %15.5f %12.5f\n", "mean KL divergence, nats", "-", kld_rtn, kld_gptq
    printf "%-28s %12s %13.2f %% %10.2f %%\n", "same top token", "-", 100 * top_rtn, 100 * top_gptq
    printf "%-28s %10.1f %% %13.1f %% %10.1f %%\n", "right of 100 questions", 100 * right,
        100 * right_rtn, 100 * right_gptq
    printf "\nGPTQ removes %.0f %% of the perplexity that plain rounding loses.\n",
        100 * (ppl_rtn - ppl_gptq) / (ppl_rtn - ppl)
    print "The embedding stays F16: in a model this small it is half of the file."
}'

say "7. Text from the checkpoint, and from the container"
echo "--- checkpoint:"
"$bin/ingot-run" "$model" --prompt "$prompt" -n 40
echo "--- container:"
"$bin/ingot-run" "$out/gptq.ingot" --prompt "$prompt" -n 40

say "The report with pictures: $out/report.html"
echo "Six recipes side by side, with gates and one page: $bin/ingot-zoo run examples/zoo/zoo.json"
