#!/bin/sh
# compute-sanitizer over the tests of the CUDA backend:
#
#   make test-gpu; sh tests/sanitize_gpu.sh BUILD [SECONDS [TOOL:PROGRAM...]]
#
# memcheck, racecheck, initcheck and synccheck, each over every test program that needs a device, or
# the pairs that are named, in their order (racecheck:test_cuda_engine); one at a time on each card
# (CUDA_VISIBLE_DEVICES: on those); SECONDS is the limit of each (default 600).  Fails when a test
# fails, a tool does not come to its end, or it reports anything.
#
# Kernels of cuBLAS and cuSOLVER are left out: their tiles read past the edges of operands into
# memory of ours that was never written, and drop what they read.  The results are compared by the
# tests themselves.  For racecheck and initcheck a plain kernel takes the place of the products of
# cuBLAS (tests/plain_products.cu says why).
set -u
[ $# -ge 1 ] && [ -d "$1" ] || {
    echo "usage: sh tests/sanitize_gpu.sh BUILD [SECONDS [TOOL:PROGRAM...]]" >&2
    exit 2
}
build=$1 limit=${2:-600}
shift $(($# > 1 ? 2 : 1))
# Their names; nothing of ours has such a part in its own.
foreign='nvjet_sm[0-9]|sm[0-9]+_xmma_|cutlass_[0-9]|splitKreduce_kernel|potrf_alg2|kernel_trsm|trsm_[lu]|syherk_kernel|cublas|cusolver'
logs=${OUT:-$build}/sanitizer-logs
mkdir -p "$logs"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -n "$sanitizer" ] || { echo "SKIP: compute-sanitizer is missing"; exit 77; }
export INGOT_TEST_SMALL=1

# The reports of a log and one line about them.  A report is a line at the margin (or behind the
# name of the test at hand) and the indented lines after it.
sum_up() { # LOG
    awk '
        function finish() {
            if (report != "") { ours++; print report }
            report = ""
        }
        /=========/ {
            sub(/^.*[^=]=========/, "=========")
            if ($0 ~ /COMPUTE-SANITIZER|Target application/) next
            if ($0 ~ /SUMMARY/) { finish(); is_whole = 1; next }
            if ($0 ~ /^========= [^ ]/) { finish(); report = $0 }
            else if (report != "") report = report "\n" $0
            next
        }
        END {
            finish()
            printf "%d reports, %s\n", ours, is_whole ? "to the end" : "NOT to the end"
        }' "$1"
}

run_one() { # TOOL PROGRAM CARD
    name=$1-$2
    preload=
    case $1 in
    racecheck | initcheck) preload="--preload-library $(realpath "$build")/tests/plain_products.so" ;;
    esac
    start=$(date +%s)
    # shellcheck disable=SC2086 # two words or none
    CUDA_VISIBLE_DEVICES=$3 timeout -k 5 "$limit" "$sanitizer" --tool "$1" $preload \
        --kernel-name-exclude "regex=$foreign" --print-limit 200 "$build/tests/$2" \
        >"$logs/$name.log" 2>&1
    code=$?
    sum_up "$logs/$name.log" >"$logs/$name.reports"
    verdict=ok
    [ $code = 0 ] && tail -n 1 "$logs/$name.reports" | grep -q '^0 reports.*, to the end' ||
        verdict=FAIL
    printf '%-4s  %-34s exit %s, %3s s, %s\n' $verdict "$name" $code \
        $(($(date +%s) - start)) "$(tail -n 1 "$logs/$name.reports")"
    [ $verdict = ok ] || {
        : >"$logs/failed"
        head -n 12 "$logs/$name.reports"
    }
}

pairs=$*
[ -n "$pairs" ] || for tool in memcheck racecheck initcheck synccheck; do
    for program in "$build"/tests/test_backend "$build"/tests/test_kernels \
        "$build"/tests/test_linear "$build"/tests/test_tuning "$build"/tests/test_backward \
        "$build"/tests/test_codes "$build"/tests/test_draw "$build"/tests/test_prefetch \
        "$build"/tests/test_cuda_*; do
        # whole conversions, of kernels that the other programs run, and copies: their memory alone
        case $tool-$program in
        *.d) continue ;;
        memcheck-*) ;;
        *-*/test_cuda_memory | *-*/test_prefetch) continue ;;
        esac
        pairs="$pairs $tool:$(basename "$program")"
    done
done

# One program at a time on each card: side by side they fail inside cuBLAS (decision 0032).
cards=$(echo "${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader |
    paste -sd, -)}" | tr ',' ' ')
[ -n "$cards" ] || { echo "SKIP: no card"; exit 77; }
rm -f "$logs/failed"
lane=0
for card in $cards; do
    {
        count=0
        for pair in $pairs; do
            [ $((count % $(echo "$cards" | wc -w))) != $lane ] ||
                run_one "${pair%%:*}" "${pair#*:}" "$card"
            count=$((count + 1))
        done
    } &
    lane=$((lane + 1))
done
wait
[ ! -e "$logs/failed" ]
