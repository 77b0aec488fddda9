#!/bin/sh
# compute-sanitizer over the tests of the CUDA backend: sh tests/sanitize_gpu.sh BUILD [SECONDS]
#
# memcheck, racecheck, initcheck and synccheck, each over every test program that needs a device, one at a time on each
# card (CUDA_VISIBLE_DEVICES: on those); SECONDS is the limit of each (default 600).  Fails when a test
# fails, a tool does not come to its end, or it reports anything but this:
#
#   kernels of cuBLAS and cuSOLVER, which all but initcheck leave out from the start.  Their
#   tiles read past the edges of operands into memory of ours that was never written, and drop what
#   they read; racecheck does not see the barriers of their asynchronous copies.  The results are
#   compared by the tests themselves.
set -u
[ $# -ge 1 ] && [ -d "$1" ] || { echo "usage: sh tests/sanitize_gpu.sh BUILD [SECONDS]" >&2; exit 2; }
build=$1 limit=${2:-600}
# Their names; nothing of ours has such a part in its own.
foreign='nvjet_sm[0-9]|sm[0-9]+_xmma_|cutlass_[0-9]|splitKreduce_kernel|potrf_alg2|kernel_trsm|trsm_[lu]|syherk_kernel|cublas|cusolver'
logs=${OUT:-$build}/sanitizer-logs
mkdir -p "$logs"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -n "$sanitizer" ] || { echo "SKIP: compute-sanitizer is missing"; exit 77; }
export INGOT_TEST_SMALL=1

run_one() { # TOOL PROGRAM CARD
    name=$1-$(basename "$2")
    # initcheck must see what libraries write: there their reports are sorted out below
    exclude="--kernel-name-exclude regex=$foreign"
    [ "$1" != initcheck ] || exclude=
    start=$(date +%s)
    # shellcheck disable=SC2086 # two words or none
    CUDA_VISIBLE_DEVICES=$3 timeout -k 5 "$limit" "$sanitizer" --tool "$1" $exclude \
        --print-limit 10000 "$2" >"$logs/$name.log" 2>&1
    echo "$? $(($(date +%s) - start))" >"$logs/$name.code"
}

# One program at a time on each card: side by side they fail inside cuBLAS (decision 0032).
cards=$(echo "${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader |
    paste -sd, -)}" | tr ',' ' ')
[ -n "$cards" ] || { echo "SKIP: no card"; exit 77; }
rm -f "$logs"/*.code
lane=0
for card in $cards; do
    {
        count=0
        for tool in memcheck racecheck initcheck synccheck; do
            for program in "$build"/tests/test_backend "$build"/tests/test_kernels \
                "$build"/tests/test_linear "$build"/tests/test_tuning \
                "$build"/tests/test_backward "$build"/tests/test_cuda_*; do
                # whole conversions, of kernels that the other programs run: their memory alone
                case $tool-$program in
                *.d) continue ;;
                memcheck-*) ;;
                *-*/test_cuda_memory) continue ;;
                esac
                [ $((count % $(echo "$cards" | wc -w))) != $lane ] ||
                    run_one $tool "$program" "$card"
                count=$((count + 1))
            done
        done
    } &
    lane=$((lane + 1))
done
wait

failed=0
for code_file in "$logs"/*.code; do
    name=$(basename "$code_file" .code)
    read -r code seconds <"$code_file"
    # A report is a line at the margin and the indented lines after it.
    awk -v foreign="$foreign" '
        function finish() {
            if (report != "") { if (report ~ foreign) left_out++; else { ours++; print report } }
            report = ""
        }
        /^=========/ {
            if ($0 ~ /COMPUTE-SANITIZER|Target application/) next
            if ($0 ~ /SUMMARY/) { finish(); is_whole = 1; next }
            if ($0 ~ /^========= [^ ]/) { finish(); report = $0 }
            else if (report != "") report = report "\n" $0
            next
        }
        END {
            finish()
            printf "%d reports, %d more in kernels of cuBLAS, %s\n", ours, left_out,
                is_whole ? "to the end" : "NOT to the end"
        }' "$logs/$name.log" >"$logs/$name.reports"
    verdict=ok
    [ "$code" = 0 ] && tail -n 1 "$logs/$name.reports" | grep -q '^0 reports.*, to the end' || {
        verdict=FAIL failed=1
    }
    printf '%-4s  %-34s exit %s, %3s s, %s\n' $verdict "$name" "$code" "$seconds" "$(tail -n 1 "$logs/$name.reports")"
    [ $verdict = ok ] || head -n 12 "$logs/$name.reports"
done
exit $failed
