#!/bin/sh
# The rules that hold for the whole tree: who may include whom, what libingot is made of, and a few
# house rules that a machine can check.  sh tests/layers.sh BUILD
set -u
build=${1:?usage: sh tests/layers.sh BUILD}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
: >"$work/broken"

broken() {
    echo "$*" | tee -a "$work/broken"
}

# Every source file, committed or about to be.
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files -co --exclude-standard
else
    find . -type f ! -path './build/*' ! -path './.git/*' | sed 's,^\./,,'
fi | sort >"$work/all"
while read -r file; do
    [ -f "$file" ] && echo "$file"
done <"$work/all" >"$work/files"
grep -E '\.(c|h|cu|cuh)$' "$work/files" >"$work/c_files"
[ -s "$work/c_files" ] || { echo "no source files found"; exit 1; }

# ---- layers: common <- format <- kernels <- calib <- { convert <- zoo | verify } --------------

allowed_for() {
    case $1 in
        common) echo "common" ;;
        format) echo "common format" ;;
        kernels) echo "common format kernels" ;;
        calib) echo "common format kernels calib" ;;
        convert) echo "common format kernels calib convert" ;;
        verify) echo "common format kernels calib verify" ;;
        zoo) echo "common format kernels calib convert zoo" ;;
    esac
}

# The folder of a header, from its name in an #include line of file $2; empty if there is none.
folder_of_header() {
    if [ -f "$1" ]; then
        echo "${1%%/*}"
    elif [ -f "$(dirname "$2")/$1" ]; then
        echo "${2%%/*}"
    elif [ -f "common/$1" ]; then
        echo common
    elif [ -f "format/$1" ]; then
        echo format
    fi
}

includes=0
grep -E '^(common|format|kernels|calib|convert|verify|zoo)/' "$work/c_files" >"$work/layered"
while read -r file; do
    case $file in *_main.c) continue ;; esac
    allowed=$(allowed_for "${file%%/*}")
    for header in $(sed -nE 's/^[ \t]*#[ \t]*include[ \t]*"([^"]+)".*/\1/p' "$file"); do
        includes=$((includes + 1))
        folder=$(folder_of_header "$header" "$file")
        case " $allowed " in
            *" $folder "*) ;;
            *) broken "$file: includes $header (${folder:-not found}); allowed: $allowed" ;;
        esac
    done
    case $file in
        common/* | format/*)
            grep -nE '#[ \t]*include[ \t]*<(cblas|lapack|lapacke|openblas|cuda|cublas|f77blas)' \
                "$file" >"$work/hits" && broken "$file: no BLAS or CUDA here: $(cat "$work/hits")"
            ;;
    esac
    # kernels/plugin.c finds the CUDA backend when it runs: nobody else may know its headers.
    case $file in
        kernels/cuda/* | kernels/plugin.c) ;;
        *) grep -nE '#[ \t]*include[ \t]*"kernels/cuda/' "$file" >"$work/hits" &&
            broken "$file: the CUDA backend is reached through kernels/backend.h" ;;
    esac
done <"$work/layered"
[ "$includes" -gt 20 ] || broken "only $includes include lines were looked at: the check is blind"

# (and in tests what stands in for cuBLAS there, or shows its failure, or for launches)
grep -E '\.cuh?$' "$work/files" |
    grep -v -e '^kernels/cuda/' -e '^tests/plain_products\.cu$' -e '^tests/share_card\.cu$' \
        -e '^tests/unit/test_\(engine\|card\)_memory\.cu$' \
        >"$work/hits" && broken "CUDA sources live in kernels/cuda: $(head -3 "$work/hits")"

# ---- libingot: the C library, xxHash and zstd ------------------------------------------------

# All headers that a source of libingot sees, at any depth, that are not the compiler's.
for source in common/status.c format/container*.c format/pack.c format/half.c format/*digest.c \
    format/weight_row.c; do
    case $source in format/container_write*) continue ;; esac # the writer belongs to the tools
    [ -f "$source" ] || continue
    ${CC:-gcc} -I. -Icommon -Iformat -D_GNU_SOURCE -M "$source" >"$work/deps" ||
        broken "$source: does not preprocess"
    tr ' \\' '\n\n' <"$work/deps" | grep '\.h$' | sort -u >"$work/headers"
    grep -E '(jansson|cblas|lapack|pcre2|utf8proc|openssl|cuda)' "$work/headers" |
        while read -r header; do broken "$source: libingot may not see $header"; done
    grep -E '(^|/)common/' "$work/headers" |
        grep -vE 'common/(ingot_status|ingot_container_codes|sizes)\.h$' |
        while read -r header; do broken "$source: libingot may not see $header"; done
done

# A program with all of libingot in it links with two libraries and nothing else.
if [ -f "$build/libingot.a" ]; then
    cat >"$work/loader.c" <<'END'
#include "ingot.h"
#include <stdio.h>
int main(void) {
    puts(ingot_status_text(INGOT_OK));
    return 0;
}
END
    sanitizers=
    nm "$build/libingot.a" 2>/dev/null | grep -q __asan_ && sanitizers=-fsanitize=address,undefined
    # shellcheck disable=SC2086
    if ${CC:-gcc} -std=c11 -Wall -Wextra -Werror -Iformat -Icommon -o "$work/loader" \
        "$work/loader.c" $sanitizers -Wl,--whole-archive "$build/libingot.a" \
        -Wl,--no-whole-archive -lxxhash -lzstd >"$work/link" 2>&1; then
        "$work/loader" >/dev/null || broken "a program with libingot.a does not run"
    else
        broken "libingot.a does not link with -lxxhash -lzstd alone: $(head -5 "$work/link")"
    fi
    # A program may have any name but those.
    for library in "$build/libingot.a" "$build/libingot_kernels.a"; do
        nm -g --defined-only "$library" | awk 'NF == 3 && $3 !~ /^ingot_/ { print $3 }' >"$work/hits"
        [ ! -s "$work/hits" ] || broken "$library: names of its own: $(head -5 "$work/hits" | tr '\n' ' ')"
    done
else
    broken "$build/libingot.a is missing"
fi

# ---- house rules -----------------------------------------------------------------------------

grep -E '\.(c|h|cu|cuh|sh|py|mk)$|^Makefile$' "$work/files" >"$work/code"
while read -r file; do
    lines=$(wc -l <"$file")
    [ "$lines" -le 800 ] || broken "$file: $lines lines, more than 800"
    case $file in
        *.c | *.h | *.cu | *.cuh)
            # Columns, not bytes: tests have texts in many scripts.
            LC_ALL=C.UTF-8 grep -nE '^.{101}' "$file" | grep -v 'https\?:' |
                sed "s|^\([0-9]*\):.*|$file:\1: longer than 100 columns|" >"$work/hits"
            [ ! -s "$work/hits" ] || broken "$(cat "$work/hits")"
            ;;
    esac
    case $file in
        kernels/*) ;; # kernels may exceed, with the reason above them
        *.c)
            awk -v file="$file" '
                /^[a-zA-Z].*\) \{$/ || /^ .*\) \{$/ && start == 0 && open == 1 { start = NR }
                /^[a-zA-Z].*\($/ || /^[a-zA-Z].*,$/ { open = 1 }
                /^\}/ { if (start > 0 && NR - start > 81)
                            print file ":" start ": a function of " NR - start - 1 " lines"
                        start = 0; open = 0 }' "$file" >"$work/hits"
            [ ! -s "$work/hits" ] || broken "$(cat "$work/hits")"
            ;;
    esac
done <"$work/code"

# Nothing may depend on one machine.  The patterns are split so that they do not match themselves.
paths="(^|[^[:alnum:]_./~-])/(wor""k|roo""t|hom""e/[a-z]+)(/|[^[:alnum:]_]|\$)"
left="\\b(TO""DO|FIX""ME|XX""X)\\b"
grep -vE '(^|/)(tokenizer|vocab)[^/]*\.json$|\.(txt|safetensors|npz|bin|ingot)$|/corpus/' \
    "$work/files" >"$work/texts"
while read -r file; do
    grep -nIE "$paths" "$file" >"$work/hits" && broken "$file: machine path: $(head -3 "$work/hits")"
    grep -nIE "$left" "$file" >"$work/hits" && broken "$file: unfinished: $(head -3 "$work/hits")"
done <"$work/texts"

count=$(wc -l <"$work/broken")
echo "$(wc -l <"$work/c_files") source files, $includes includes, $count broken rules"
[ "$count" = 0 ]
