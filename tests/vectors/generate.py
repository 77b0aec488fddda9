"""The conformance vectors of spec/vectors/: containers and what a reader must make of them.

    generate.py FOLDER      writes FOLDER/valid, invalid, future and vectors.json
    generate.py --check FOLDER    says whether FOLDER is what would be written

Made from spec/container.md and spec/quantization.md alone (numpy and xxhash; see container.py).
"""

import json
import os
import struct
import sys
import tempfile

from container import (ALIAS, AUXILIARY, BF16, CHUNK, DENSE, F16, F32, GROUPED, I32, LEDGER, U8,
                       Edit, File, Tensor, alias, content_id, dense, grouped, pack_row, stream, xxh64)

KINDS = ("dense", "grouped", "alias", "auxiliary")
DTYPES = ("F32", "F16", "BF16", "I32", "U8")


# ---- valid ------------------------------------------------------------------------------------


def mixed():
    """A little of everything, in one file."""
    w = grouped("b.weight", [3, 40], 4, 16, 0, F16, 11, places=[7, 41, 119])
    return File([dense("a.norm", [5], F32, 10), w, alias("z.tied", w, 1),
                 dense("b.weight#fold", [40], F32, 12, AUXILIARY),
                 grouped("c.weight", [2, 24], 3, 8, 1, BF16, 13)],
                [("config.json", b'{"hidden_size": 40}\n'), ("vocab.txt", b"")],
                b'{"kind":"vector"}')


def tiny():
    """The worked example of container.md, appendix A."""
    codes = [[0, 7, 8, 15, 1, 2, 3, 4], [8, 9, 10, 11, 12, 13, 14, 15]]
    scales, zeros = [0.5, -0.25], [7, 8]
    values = [s * (q - z) for row, s, z in zip(codes, scales, zeros) for q in row]
    parts = [b"".join(pack_row(row, 4) for row in codes), struct.pack("<2e", *scales), bytes(zeros),
             b""]
    return File([Tensor("w", GROUPED, [2, 8], F16, parts, bits=4, scale_dtype=F16, zero_mode=1,
                        group=8, values=struct.pack("<16f", *values))], [("a.txt", b"hi\n")])


def valid():
    """(name, [File, ...]); several Files are a set of shards."""
    out = [("empty", [File()]), ("mixed", [mixed()])]
    out.append(("tiny", [tiny()]))
    out.append(("dense-dtypes", [File([dense(f"t.{DTYPES[d]}", [3, 5], d, 20 + d)
                                       for d in (F32, F16, BF16, I32, U8)])]))
    out.append(("ranks", [File([dense(f"rank{r}", [2, 3, 1, 4][:r], F16, 30 + r)
                                for r in (1, 2, 3, 4)] +
                               [grouped(f"w.rank{r}", [2, 3, 1, 16][4 - r:], 4, 0, 0, F16, 35 + r)
                                for r in (1, 2, 3, 4)])]))
    out.append(("zero-sizes", [File([dense("none", [0], F32, 1), dense("rows", [0, 7], F16, 2),
                                     dense("columns", [3, 0], U8, 3), dense("one", [1], I32, 4)])]))
    for bits in range(2, 9):
        for mode in (0, 1):
            name = f"w{bits}-{'stored' if mode else 'symmetric'}"
            out.append((name, [File([grouped("w", [3, 37], bits, 16, mode, F16, 100 + bits)])]))
    for group in (32, 64, 128):
        out.append((f"group-{group}", [File([grouped("w", [2, 200], 4, group, 0, F16, 120 + group)])]))
    out.append(("group-row", [File([grouped("w", [4, 77], 4, 0, 1, F16, 130)])]))
    out.append(("group-short", [File([grouped("w", [2, 65], 3, 64, 1, F16, 131)])]))
    for d in (F32, F16, BF16):
        out.append((f"scales-{DTYPES[d]}", [File([grouped("w", [3, 24], 5, 8, 1, d, 140 + d)])]))
    out.append(("outliers-F16", [File([grouped("w", [4, 24], 3, 8, 0, F16, 150,
                                               places=[0, 1, 23, 24, 95])])]))
    out.append(("outliers-F32", [File([grouped("w", [4, 24], 8, 0, 1, F16, 151,
                                               places=[30, 31, 40, 50], dtype=F32)])]))
    out.append(("outliers-all", [File([grouped("w", [2, 8], 2, 8, 0, F16, 152,
                                               places=list(range(16)))])]))
    w = grouped("w", [2, 16], 4, 0, 0, F16, 160)
    out.append(("alias", [File([dense("a", [4], F16, 161), alias("a.again", dense("a", [4], F16, 161),
                                                                 0), w, alias("0.w", w, 2)])]))
    fold = dense("q#fold", [16], F32, 170, AUXILIARY)
    out.append(("folds", [File([grouped("q", [2, 16], 4, 0, 0, F16, 171), fold,
                                grouped("k", [2, 16], 4, 0, 0, F16, 172), alias("k#fold", fold, 1),
                                dense("q#rowfold", [2], F32, 173, AUXILIARY)])]))
    # Readers hand META out as bytes; ingot-verify says E_META.
    out.append(("meta-no-json", [File([dense("a", [2], F16, 162)], meta=b"no JSON")]))
    statistics = File([dense("0/gram", [3], F32, 180), dense("0/counts", [2], I32, 181)])
    statistics.profile = 1
    out.append(("statistics", [statistics]))
    big = Tensor("zeros", DENSE, [1, CHUNK + 70000], U8, [bytes(CHUNK + 70000), b"", b"", b""],
                 values=b"")
    zstd = mixed()
    zstd.is_compressed = True
    out.append(("zstd-stored", [zstd]))
    chunks = File([dense("a", [9], F16, 190), big, dense("b", [300], U8, 191)])
    chunks.is_compressed, chunks.order = True, [2, 0, 3, 1]
    out.append(("zstd-chunks", [chunks]))
    out.append(("set", shard_set(b"vector set", 200)))
    ledger = mixed()
    for i, t in enumerate(ledger.tensors):
        t.ledger = struct.pack("<4BIIIQQ5d16s40x", i % 6, i % 4, 255 - i, i % 2, i, 2 * i, 0, 4096,
                               t.outliers if t.kind == GROUPED else 0, 0.125, 0.25, 0.0, 1.5, 0.01,
                               stream(210 + i, 16))
    out.append(("ledger", [ledger]))
    return out


def shard_set(set_id, seed):
    w = grouped("m.weight", [2, 24], 4, 8, 0, F16, seed)
    shards = [File([dense("a", [3, 3], BF16, seed + 1)], [("config.json", b"{}")]),
              File([w, alias("l.weight", w, 0)]), File([dense("z", [2], F32, seed + 2)])]
    for i, f in enumerate(shards):
        f.shard, f.shards, f.set_id = i, 3, stream(len(set_id), 16)
    shards[0].roots = b"".join(f.build()[88:104] for f in shards[1:])
    return shards


def shard_name(stem, i, n):
    return f"{stem}-{i + 1:05d}-of-{n:05d}.ingot"


def describe(t):
    out = {"name": t.name, "kind": KINDS[t.kind], "shape": list(t.dims), "dtype": DTYPES[t.dtype]}
    if t.kind == GROUPED or (t.kind == ALIAS and t.bits):
        out |= {"bits": t.bits, "group": t.group, "zero_points": "stored" if t.zero_mode else
                "symmetric", "scale_dtype": DTYPES[t.scale_dtype]}
    if t.kind == GROUPED:
        out["outliers"] = t.outliers
    if len(t.values) > 4096 or (not t.values and 0 not in t.dims):
        raw = t.values or t.parts[0]
        out["values_xxh3_64"] = xxh64(raw)[::-1].hex()
    else:
        out["values"] = t.values.hex()
    return out


# ---- invalid ----------------------------------------------------------------------------------


def invalid():
    """(name, code, bytes); each one fault away from a valid file."""
    base, empty = mixed().build(), File().build()
    ranks = dict(valid())["ranks"][0].build()
    zstd = dict(valid())["zstd-chunks"][0].build()
    asymmetric = File([grouped("w", [3, 37], 3, 16, 1, F16, 103)]).build()
    kept = File([grouped("w", [4, 24], 3, 8, 0, F16, 150, places=[0, 1, 23, 24, 95])]).build()
    out = []

    def add(name, code, edit):
        out.append((name, code, bytes(edit.raw if isinstance(edit, Edit) else edit)))

    def edited(raw=None):
        return Edit(base if raw is None else raw)

    def u16(x):
        return struct.pack("<H", x)

    def u32(x):
        return struct.pack("<I", x)

    def u64(x):
        return struct.pack("<Q", x)

    def field(name, code, kind, offset, value, raw=None):
        """A field of a section, all digests repaired."""
        e = edited(raw)
        add(name, code, e.put(e.where(kind)[0] + offset, value).repair())

    def table(name, code, kind, offset, value, raw=None):
        """A field of the section table, digests repaired."""
        e = edited(raw)
        add(name, code, e.put(e.entry(kind) + offset, value).repair(sections=False))

    def block(name, code, offset, value, raw=None):
        e = edited(raw)
        e.put(offset, value)
        add(name, code, e.put(120, xxh64(bytes(e.raw[:120]))))

    def data(name, code, raw, record, part, offset, value):
        """Bytes of a part, chunk digests and all above repaired."""
        e = Edit(raw)
        start = e.where("TIDX")[0] + 160 * record + 64 + 16 * part
        at = e.where("DATA")[0] + struct.unpack_from("<Q", e.raw, start)[0] + offset
        add(name, code, e.put(at, value).repair_chunks().repair())

    add("short-empty", "E_TOO_SHORT", b"")
    add("short", "E_TOO_SHORT", base[:159])
    add("magic", "E_MAGIC", edited().flip(1))
    add("magic-text-mode", "E_MAGIC", base.replace(b"\r\n", b"\n", 1) + b"\0")
    add("superblock-digest", "E_SUPERBLOCK_DIGEST", edited().flip(72))
    block("version", "E_VERSION", 8, u16(2))
    block("superblock-size", "E_SUPERBLOCK", 12, u32(256))
    block("profile", "E_SUPERBLOCK", 60, u32(3))
    block("shard-index", "E_SUPERBLOCK", 64, u32(1))
    block("shard-count", "E_SUPERBLOCK", 68, u32(0))
    block("too-many-sections", "E_SUPERBLOCK", 56, u32(65))
    block("superblock-reserved", "E_SUPERBLOCK", 104, b"\1")
    add("file-cut", "E_FILE_SIZE", base[:-8])
    add("file-longer", "E_FILE_SIZE", base + bytes(8))
    add("trailer", "E_TRAILER", edited().flip(len(base) - 1))
    small = bytearray(base[:120])
    small[16:24], small[56:60] = u64(160), u32(1)
    add("table", "E_TABLE", bytes(small) + xxh64(bytes(small)) + base[88:104] + u64(160) + base[-8:])
    add("root", "E_ROOT", edited().flip(edited().entry("META") + 24))
    table("section-flags", "E_SECTION_ORDER", "META", 4, u32(0))
    swapped = edited()
    a, b = swapped.entry("TSRT"), swapped.entry("NAME")
    first, second = bytes(swapped.raw[a:a + 48]), bytes(swapped.raw[b:b + 48])
    add("section-order", "E_SECTION_ORDER", swapped.put(a, second).put(b, first).repair(False))
    table("section-twice", "E_SECTION_ORDER", "LEDG", 0, b"CHNK")
    e = edited()
    table("section-offset", "E_SECTION_BOUNDS", "META", 8, u64(e.where("META")[0] + 8))
    table("section-end", "E_SECTION_BOUNDS", "DATA", 16, u64(1 << 40))
    table("section-aux", "E_SECTION_SIZE", "TIDX", 24, u64(1))
    add("section-digest", "E_SECTION_DIGEST", edited().flip(edited().where("META")[0] + 3))
    table("data-digest", "E_SECTION_DIGEST", "DATA", 32, b"\1")
    e = edited(empty)
    add("gap", "E_GAP", e.flip(e.where("META")[0] + 3))
    field("name-character", "E_NAME", "NAME", 0, b" ")
    field("name-offset", "E_NAME", "TIDX", 160, u32(7))
    field("file-name", "E_NAME", "NAME", edited().where("NAME")[1] - 9, b"/")
    field("kind", "E_RECORD", "TIDX", 6, b"\4")
    field("rank", "E_RECORD", "TIDX", 7, b"\5")
    field("dtype", "E_RECORD", "TIDX", 40, b"\5")
    field("bits", "E_RECORD", "TIDX", 160 + 41, b"\1")
    field("group", "E_RECORD", "TIDX", 160 + 44, u32(12))
    field("outlier-count", "E_RECORD", "TIDX", 160 + 48, u64(121))
    field("record-reserved", "E_RECORD", "TIDX", 130, b"\1")
    field("dimension-beyond-rank", "E_RECORD", "TIDX", 32, b"\1")
    field("shape-product", "E_RECORD", "TIDX", 8, u64(1 << 49), ranks)
    field("part-offset", "E_GEOMETRY", "TIDX", 160 + 64, u64(512))
    field("part-size", "E_GEOMETRY", "TIDX", 72, u64(24))
    field("first-chunk", "E_GEOMETRY", "TIDX", 160 + 56, u64(2))
    field("alias-of-alias", "E_ALIAS", "TIDX", 320 + 48, u64(2))
    field("alias-nowhere", "E_ALIAS", "TIDX", 320 + 48, u64(5))
    field("alias-shape", "E_ALIAS", "TIDX", 320 + 8, u64(4))
    field("sort", "E_SORT", "TSRT", 0, u32(1) + u32(0))
    field("sort-range", "E_SORT", "TSRT", 16, u32(5))
    field("equal-names", "E_SORT", "NAME", 33, b"b")
    field("method", "E_LEDGER", "LEDG", 0, b"\6")
    field("ledger-number", "E_LEDGER", "LEDG", 32, struct.pack("<d", -1.0))
    field("ledger-nan", "E_LEDGER", "LEDG", 40, u64(0x7FF8000000000001))
    field("codec", "E_ZMAP", "ZMAP", 12, u32(2), zstd)
    field("stored-length", "E_ZMAP", "ZMAP", 8, u32(0), zstd)
    field("stored-overlap", "E_ZMAP", "ZMAP", 24, u64(1), zstd)
    e = Edit(zstd)
    add("stored-digest", "E_STORED_DIGEST", e.flip(e.where("DATA")[0] + 1))
    e = Edit(zstd)
    at, length = struct.unpack_from("<QI", e.raw, e.where("ZMAP")[0] + 24)
    first = e.where("DATA")[0] + at
    e.flip(first)
    e.put(e.where("ZMAP")[0] + 24 + 16, xxh64(bytes(e.raw[first:first + length])))
    add("frame-magic", "E_COMPRESSION", e.repair())
    # Two chunks of codec 0 with the border between them moved: ZMAP covers DATA, the lengths are wrong.
    e = Edit(dict(valid())["zstd-stored"][0].build())
    data_at, first = e.where("DATA")[0], e.where("ZMAP")[0]
    (at, length, codec), (then, rest, second) = (struct.unpack_from("<QII", e.raw, first + 24 * i)
                                                 for i in (0, 1))
    assert codec == second == 0 and then == at + length
    for i, (start, size) in enumerate([(at, length - 1), (then - 1, rest + 1)]):
        digest = xxh64(bytes(e.raw[data_at + start:data_at + start + size]))
        e.put(first + 24 * i, struct.pack("<QII", start, size, 0) + digest)
    add("stored-short", "E_COMPRESSION", e.repair())
    add("chunk-digest", "E_CHUNK_DIGEST", edited().flip(edited().where("DATA")[0]))
    data("code-padding", "E_CODE_PADDING", asymmetric, 0, 0, 13, b"\x80")
    data("scale-nan", "E_SCALE", asymmetric, 0, 1, 0, b"\0\x7e")
    data("scale-large", "E_SCALE", asymmetric, 0, 1, 2, b"\1\x78")
    data("scale-small", "E_SCALE", dict(valid())["scales-BF16"][0].build(), 0, 1, 0, b"\0\x0d")
    data("zero-point", "E_ZERO_POINT", asymmetric, 0, 2, 4, b"\x08")
    data("row-pointer-first", "E_OUTLIER", kept, 0, 3, 0, u64(1))
    data("row-pointer-falls", "E_OUTLIER", kept, 0, 3, 16, u64(2))
    data("row-pointer-last", "E_OUTLIER", kept, 0, 3, 32, u64(4))
    data("outlier-column", "E_OUTLIER", kept, 0, 3, 40, u32(24))
    data("outlier-order", "E_OUTLIER", kept, 0, 3, 44, u32(0))
    data("outlier-nan", "E_OUTLIER", kept, 0, 3, 64, b"\0\x7e")
    data("outlier-code", "E_OUTLIER", kept, 0, 0, 0, bytes([kept[Edit(kept).where("DATA")[0]] ^ 1]))
    data("outlier-gap", "E_OUTLIER", kept, 0, 3, 60, b"\1")
    add("data-gap", "E_DATA_GAP", edited().flip(edited().where("DATA")[0] + 100))
    return out


def invalid_sets():
    """(name, code, file that is opened, {file: bytes})."""
    def named(shards, stem):
        return {shard_name(stem, i, len(shards)): f.build() for i, f in enumerate(shards)}

    whole, other = shard_set(b"vector set", 200), shard_set(b"another set", 200)
    missing = named(whole, "missing")
    del missing[shard_name("missing", 1, 3)]
    foreign = named(whole, "foreign")
    foreign[shard_name("foreign", 1, 3)] = other[1].build()
    exchanged = named(whole, "exchanged")
    b, c = shard_name("exchanged", 1, 3), shard_name("exchanged", 2, 3)
    exchanged[b], exchanged[c] = exchanged[c], exchanged[b]
    twice = shard_set(b"vector set", 200)
    twice[2].tensors[0].name = "a"
    twice[0].roots = b"".join(f.build()[88:104] for f in twice[1:])
    return [("missing", "E_SHARD_MISSING", shard_name("missing", 0, 3), missing),
            ("foreign", "E_SHARD", shard_name("foreign", 0, 3), foreign),
            ("exchanged", "E_SHARD", shard_name("exchanged", 0, 3), exchanged),
            ("name-twice", "E_SHARD", shard_name("name-twice", 2, 3), named(twice, "name-twice")),
            ("out-of-place", "E_SHARD_MISSING", "out-of-place-00004-of-00003.ingot",
             named(whole, "out-of-place") | {"out-of-place-00004-of-00003.ingot":
                                             whole[0].build()})]


# ---- future -----------------------------------------------------------------------------------


def future():
    """(name, code or None, File): what a later minor version may add."""
    out = []
    for name, code, change in [
            ("minor-version", None, {"minor": 9}), ("compat-bit", None, {"compat": 1 << 63}),
            ("ro-compat-bit", None, {"ro_compat": 5}),
            ("incompat-bit", "E_INCOMPAT", {"incompat": 2}),
            ("unknown-section", None, {"unknown": [(0, b"HINT", 0, b"skip me")]}),
            ("private-section", None, {"unknown": [(6, b"note", 6, b"")]}),
            ("critical-section", "E_CRITICAL_SECTION", {"unknown": [(3, b"MUST", 1, b"know")]})]:
        f = mixed()
        for key, value in change.items():
            setattr(f, key, value)
        out.append((name, code, f))
    return out


# ---- writing ----------------------------------------------------------------------------------


def write(folder):
    manifest = {"version": "1.0", "valid": [], "invalid": [], "future": []}
    for kind in ("valid", "invalid", "future"):
        os.makedirs(os.path.join(folder, kind), exist_ok=True)

    def save(kind, name, raw):
        with open(os.path.join(folder, kind, name), "wb") as f:
            f.write(raw)

    def expected(shards):
        first = shards[0]
        return {"profile": first.profile, "content_id": content_id(shards),
                "root": first.build()[88:104][::-1].hex(), "meta": first.meta.decode(),
                "files": {name: raw.hex() for name, raw in first.files},
                "tensors": [describe(t) for f in shards for t in f.tensors]}

    for name, shards in valid():
        names = [f"{name}.ingot"] if len(shards) == 1 else [
            shard_name(name, i, len(shards)) for i in range(len(shards))]
        for file_name, f in zip(names, shards):
            save("valid", file_name, f.build())
        manifest["valid"].append({"file": f"valid/{names[0]}", "shards": len(names)} |
                                 expected(shards))
    for name, code, raw in invalid():
        save("invalid", f"{name}.ingot", raw)
        manifest["invalid"].append({"file": f"invalid/{name}.ingot", "code": code})
    for name, code, opened, files in invalid_sets():
        for file_name, raw in files.items():
            save("invalid", file_name, raw)
        manifest["invalid"].append({"file": f"invalid/{opened}", "code": code})
    for name, code, f in future():
        save("future", f"{name}.ingot", f.build())
        entry = {"file": f"future/{name}.ingot", "code": code}
        manifest["future"].append(entry | ({} if code else expected([f])))
    with open(os.path.join(folder, "vectors.json"), "w", encoding="ascii") as f:
        json.dump(manifest, f, indent=1)
        f.write("\n")


def read_all(folder):
    out = {}
    for kind in ("valid", "invalid", "future"):
        for name in os.listdir(os.path.join(folder, kind)):
            with open(os.path.join(folder, kind, name), "rb") as f:
                out[f"{kind}/{name}"] = f.read()
    with open(os.path.join(folder, "vectors.json"), "rb") as f:
        out["vectors.json"] = f.read()
    return out


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        with tempfile.TemporaryDirectory() as folder:
            write(folder)
            wanted, there = read_all(folder), read_all(sys.argv[2])
        wrong = [name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)]
        if wrong:
            sys.exit(f"{sys.argv[2]} differs from what generate.py writes: {sorted(wrong)}")
        print(f"{len(wanted)} files")
    elif len(sys.argv) == 2:
        write(sys.argv[1])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
