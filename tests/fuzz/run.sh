#!/bin/sh
# Fuzzes every reader in turn: sh tests/fuzz/run.sh FUZZ_BUILD SECONDS (called by make fuzz).
# What is found stays in FUZZ_BUILD/found/READER; a crash is an input worth adding to the corpus.
set -u
build=${1:?usage: sh tests/fuzz/run.sh FUZZ_BUILD SECONDS}
seconds=${2:?seconds per reader}
ran=0 failed=0
for source in tests/fuzz/fuzz_*.c; do
    [ -f "$source" ] || continue
    target=$(basename "$source" .c)
    reader=${target#fuzz_}
    found=$build/found/$reader
    mkdir -p "$found"
    ran=$((ran + 1))
    if "$build/fuzzers/$target" -dict="tests/fuzz/$reader.dict" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 \
        -print_final_stats=1 -artifact_prefix="$found/" "$found" "tests/fuzz/corpus/$reader" \
        >"$found.log" 2>&1 </dev/null; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$found.log")
        echo "PASS  $reader  ($runs runs in $seconds s)"
    else
        failed=$((failed + 1))
        echo "FAIL  $reader"
        tail -n 40 "$found.log" | sed 's/^/        /'
    fi
done
echo "$((ran - failed)) readers passed, $failed failed"
[ "$failed" = 0 ] && [ "$ran" != 0 ]
