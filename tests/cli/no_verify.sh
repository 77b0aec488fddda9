# ingot-run --no-verify leaves out digests and the range of values, and no bound: what would be read
# or written outside is refused with it too.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-run python3

convert() {
    expect_exit 0 ingot-convert "$MODEL" -o "$1" --method rtn --outliers 0.01 --force
}
convert whole.ingot
expect_exit 0 ingot-convert "$MODEL" -o packed.ingot --method rtn --zstd

# damage FROM TO WHAT: changes bytes of DATA, no digest is made to fit.
damage() {
    python3 - "$@" <<'END'
import struct, sys

source, target, what = sys.argv[1:]
raw = bytearray(open(source, "rb").read())
section = {}
for i in range(struct.unpack_from("<I", raw, 56)[0]):
    kind, _, offset, size = struct.unpack_from("<4sIQQ", raw, 128 + 48 * i)
    section[kind] = offset, size
data = section[b"DATA"][0]
records, size = section[b"TIDX"]
for at in range(records, records + size, 160):
    rows, cols = struct.unpack_from("<QQ", raw, at + 8)
    count, = struct.unpack_from("<Q", raw, at + 48)
    part = [data + x for x in struct.unpack_from("<8Q", raw, at + 64)[::2]]
    if raw[at + 6] == 1 and (count > 1 or what == "frame"):
        break
col = part[3] + 8 * (rows + 1)
if what == "code":
    raw[part[0]] ^= 1
elif what == "column": # of the last outlier: the row behind its own
    struct.pack_into("<I", raw, col + 4 * (count - 1), cols)
elif what == "far column":
    struct.pack_into("<I", raw, col + 4 * (count - 1), 0xFFFFFFFF)
elif what == "row":
    struct.pack_into("<Q", raw, part[3] + 8, count + 1)
elif what == "far row":
    struct.pack_into("<Q", raw, part[3] + 8, 1 << 63)
elif what == "last row":
    struct.pack_into("<Q", raw, part[3] + 8 * rows, count - 1)
elif what == "cut":
    del raw[part[3]:]
elif what == "cut by a byte":
    del raw[-1:]
elif what == "frame": # a compressed chunk says that it is longer
    chunks, size = section[b"ZMAP"]
    for at in range(chunks, chunks + size, 24):
        offset, _, codec = struct.unpack_from("<QII", raw, at)
        if codec == 1:
            raw[data + offset + 5] ^= 1
            break
open(target, "wb").write(raw)
END
}

# outcome FILE [OPTION]: the code of an error, or the text.
outcome() {
    ingot-run "$@" --prompt "The old man" -n 4 --device cpu --json >out 2>err || :
    ! grep -E 'AddressSanitizer|runtime error:' err >&2 || fail "a sanitizer: $*"
    python3 -c 'import json; o = json.load(open("out")); print(o["error"] or "text " + o["text"])'
}

# expect WHAT VERIFIED UNVERIFIED [FROM]: what comes of damage, with and without digests.
expect() {
    damage "${4:-whole.ingot}" damaged.ingot "$1"
    with=$(outcome damaged.ingot) without=$(outcome damaged.ingot --no-verify)
    echo "$1: $with; --no-verify: $without"
    [ "${with%% *}" = "$2" ] || fail "$1: expected $2"
    [ "${without%% *}" = "$3" ] || fail "$1 with --no-verify: expected $3"
}

[ "$(outcome whole.ingot)" = "$(outcome whole.ingot --no-verify)" ] || fail "other text without digests"
expect code E_CHUNK_DIGEST text
expect column E_CHUNK_DIGEST E_OUTLIER
expect 'far column' E_CHUNK_DIGEST E_OUTLIER
expect row E_CHUNK_DIGEST E_OUTLIER
expect 'far row' E_CHUNK_DIGEST E_OUTLIER
expect 'last row' E_CHUNK_DIGEST E_OUTLIER
expect cut E_FILE_SIZE E_FILE_SIZE
expect 'cut by a byte' E_FILE_SIZE E_FILE_SIZE
expect frame E_STORED_DIGEST E_COMPRESSION packed.ingot
