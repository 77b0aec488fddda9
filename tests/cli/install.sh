# make install: what lands where, with DESTDIR and without; a C program that finds libingot through
# pkg-config reads one tensor of a container; make uninstall leaves no file.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert make gcc pkg-config python3

mode=$(basename "$INGOT_BUILD")
case $mode in
    release | debug) ;;
    *) skip "installs release and debug builds only, this is $mode" ;;
esac
here=$PWD
unset MAKEFLAGS MAKELEVEL MFLAGS
install_with() {
    goal=$1
    shift
    make -C "$INGOT_ROOT" "$goal" MODE="$mode" "$@" >log 2>&1 || {
        cat log >&2
        fail "make $goal $*"
    }
}

install_with install DESTDIR="$here/stage" PREFIX=/opt/ingot
[ -x stage/opt/ingot/bin/ingot-convert ] || fail "DESTDIR: no ingot-convert"
[ -s stage/opt/ingot/share/ingot/ingot.magic ] || fail "DESTDIR: no ingot.magic"
grep -qx 'prefix=/opt/ingot' stage/opt/ingot/lib/pkgconfig/ingot.pc || fail "DESTDIR in ingot.pc"
install_with uninstall DESTDIR="$here/stage" PREFIX=/opt/ingot
[ -z "$(find stage ! -type d)" ] || fail "uninstall left: $(find stage ! -type d)"

install_with install PREFIX="$here/prefix"
for path in "$INGOT_BUILD"/bin/ingot-*; do
    tool=$(basename "$path")
    "prefix/bin/$tool" --version >out || fail "the installed $tool does not run"
    [ -s "prefix/share/man/man1/$tool.1" ] || fail "$tool has no man page"
done

cat >reader.c <<'END'
#include <ingot.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    ingot_container *container = NULL;
    ingot_error error = {0};
    if (argc != 3 || ingot_open(&container, argv[1], &error) != INGOT_OK) {
        fprintf(stderr, "%s\n", error.reason);
        return 1;
    }
    uint64_t index;
    const ingot_tensor *tensor = ingot_tensor_find(container, argv[2], &index);
    ingot_weight_view view;
    void *buffer = NULL;
    float *row = NULL;
    if (tensor == NULL ||
        posix_memalign(&buffer, 64, ingot_tensor_load_bytes(container, index)) != 0 ||
        ingot_tensor_load(container, index, true, buffer, &view, &error) != INGOT_OK ||
        (row = malloc(tensor->cols * sizeof *row)) == NULL) {
        fprintf(stderr, "%s: %s\n", argv[2], error.reason);
        return 1;
    }
    double sum = 0;
    for (uint64_t r = 0; r < view.rows; r++) {
        ingot_weight_row(row, &view, r, view.cols);
        for (uint64_t c = 0; c < view.cols; c++) {
            sum += row[c] * row[c];
        }
    }
    printf("%llu x %llu, %u bits, sum of squares %.9g\n", (unsigned long long)view.rows,
           (unsigned long long)view.cols, view.bits, sum);
    free(row);
    free(buffer);
    ingot_close(container);
    return 0;
}
END
export PKG_CONFIG_PATH="$here/prefix/lib/pkgconfig"
[ "$(pkg-config --modversion ingot)" = 0.1.0 ] || fail "pkg-config knows no version"
# libingot is static: its own dependencies are wanted.
# shellcheck disable=SC2046
gcc -std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Werror $(pkg-config --cflags ingot) \
    -o reader reader.c $(pkg-config --static --libs ingot)

name=model.layers.1.mlp.up_proj.weight
ingot-convert "$MODEL" -o model.ingot --method rtn >out 2>err
./reader model.ingot $name >out
# The same figure from the checkpoint, rounded here: symmetric, 4 bits, groups of 128, F16 scales.
python3 - "$MODEL/model.safetensors" $name >expected <<'END'
import json, struct, sys
with open(sys.argv[1], "rb") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    info = json.loads(file.read(size))[sys.argv[2]]
    begin, end = info["data_offsets"]
    file.seek(8 + size + begin)
    rows, cols = info["shape"]
    values = struct.unpack(f"<{rows * cols}e", file.read(end - begin))
total = 0.0
for at in range(0, rows * cols, 128):
    group = values[at : at + 128]
    scale = struct.unpack("<e", struct.pack("<e", max(map(abs, group)) / 7))[0]
    codes = [max(-8, min(7, round(w / scale))) if scale else 0 for w in group]
    total += sum((scale * q) ** 2 for q in codes)
print(f"{rows} x {cols}, 4 bits, sum of squares {total:.9g}")
END
python3 - <<'END'
got, want = (open(name).read().rsplit(" ", 1) for name in ("out", "expected"))
assert got[0] == want[0] and abs(float(got[1]) / float(want[1]) - 1) < 1e-5, (got, want)
END
# The example decodes with the two libraries alone; without a device it says so.
# shellcheck disable=SC2046
gcc -std=c11 -Wall -Wextra -Werror -o decode "$INGOT_ROOT/examples/decode/decode.c" \
    $(pkg-config --cflags --static --libs ingot_kernels) -lm
if ./decode model.ingot 20 1 40 300 >out 2>err; then
    [ "$(wc -w <out)" = 20 ] || fail "not 20 tokens: $(cat out)"
else
    grep -q 'device cuda' err || fail "no reason: $(cat err)"
fi

if ./reader "$MODEL/config.json" $name >out 2>err; then fail "reads what is no container"; fi

install_with uninstall PREFIX="$here/prefix"
[ -z "$(find prefix ! -type d)" ] || fail "uninstall left: $(find prefix ! -type d)"
