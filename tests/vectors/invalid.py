"""Invalid containers, one fault away from a valid one: at least one for every code (rules.py has the
other sides of the rules)."""

import struct

from container import F16, Edit, File, grouped, xxh64
from valid import mixed, shard_name, shard_set, valid


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
