"""More invalid containers: every rule of container.md, section 12, by itself and on each of its sides,
as far as small files can break it."""

import struct

import xxhash

from container import (AUXILIARY, BF16, F16, F32, U8, Edit, File, alias, dense, frame, grouped, xxh64,
                       xxh128)
from valid import shard_name, tiny


def u32(x):
    return struct.pack("<I", x)


def u64(x):
    return struct.pack("<Q", x)


def small():
    """One record of each kind."""
    w = grouped("w", [1, 8], 4, 8, 0, F16, 300)
    return File([dense("a", [2], F16, 301), w, alias("z", w, 1), dense("w#fold", [8], F32, 302, AUXILIARY)],
                [("b.txt", b"text")])


def one_chunk(packed=None):
    """Compressed, one chunk."""
    f = File([dense("a", [40], U8, 310)])
    f.is_compressed = True
    f.frames = {0: packed} if packed else {}
    return f


def put(raw, kind, *changes):
    """Bytes of a section, digests repaired: (offset, bytes), ..."""
    e = Edit(raw)
    for offset, value in changes:
        e.put(e.where(kind)[0] + offset, value)
    return bytes(e.repair().raw)


def block(raw, offset, value):
    e = Edit(raw).put(offset, value)
    return bytes(e.put(120, xxh64(bytes(e.raw[:120]))).raw)


def table(raw, kind, offset, value):
    e = Edit(raw)
    return bytes(e.put(e.entry(kind) + offset, value).repair(sections=False).raw)


def part(raw, record, number, offset, value):
    """Bytes of a part of a record."""
    e = Edit(raw)
    start = e.where("TIDX")[0] + 160 * record + 64 + 16 * number
    at = e.where("DATA")[0] + struct.unpack_from("<Q", e.raw, start)[0] + offset
    return bytes(e.put(at, value).repair_chunks().repair().raw)


def flip(raw, at):
    return bytes(Edit(raw).flip(at).raw)


# ---- superblock, trailer, sections ------------------------------------------------------------


def sectionless(count, size):
    """A superblock and a trailer with `count` records of zeros between them, as far as they fit."""
    raw = bytearray(tiny().build()[:128]) + bytes(size - 128)
    raw[16:24], raw[56:60] = u64(size), u32(count)
    raw[88:104] = raw[-32:-16] = xxh128(bytes(48 * count))
    raw[-16:] = u64(size) + b"IGTEND\r\n"
    raw[120:128] = xxh64(bytes(raw[:120]))
    return bytes(raw)


def of_superblock(raw):
    yield "version-zero", "E_VERSION", block(raw, 8, b"\0\0")
    yield "table-offset", "E_SUPERBLOCK", block(raw, 48, u64(136))
    yield "file-size-limit", "E_SUPERBLOCK", block(raw, 16, u64((1 << 48) + 1))
    yield "shard-count-limit", "E_SUPERBLOCK", block(raw, 68, u32(10000))
    yield "trailer-root", "E_TRAILER", flip(raw, len(raw) - 32)
    yield "trailer-size", "E_TRAILER", flip(raw, len(raw) - 16)
    # A record more than fits, by one byte; exactly as many; none.
    yield "table-edge", "E_TABLE", sectionless(1, 207)
    yield "table-fits", "E_SECTION_ORDER", sectionless(1, 208)
    yield "table-empty", "E_SECTION_ORDER", sectionless(0, 160)


def without(kind):
    return lambda sections: [s for s in sections if s[0] != kind]


def with_one(kind, raw, before):
    return lambda sections: [x for s in sections for x in
                             ([(kind, 1, raw, 0)] if s[0] == before else []) + [s]]


def replaced(kind, aux=None, change=None):
    """The section with another aux, or other bytes."""
    return lambda sections: [
        (k, f, change(raw) if change and k == kind else raw, aux if aux and k == kind else a)
        for k, f, raw, a in sections]


def first_of_set():
    f = File([dense("a", [2], U8, 320)])
    f.shards, f.roots = 2, bytes(16)
    return f


def of_order():
    for kind in (b"TIDX", b"TSRT", b"NAME", b"CHNK", b"LEDG", b"META", b"DATA"):
        yield f"missing-{kind.decode()}", "E_SECTION_ORDER", File().build(without(kind))
    yield "repeated-META", "E_SECTION_ORDER", File().build(with_one(b"META", b"{}", b"DATA"))
    later, compressed = first_of_set(), one_chunk()
    later.shard = 1
    yield "roots-missing", "E_SECTION_ORDER", first_of_set().build(without(b"SHRD"))
    yield "roots-in-later-shard", "E_SECTION_ORDER", later.build(
        with_one(b"SHRD", bytes(16), b"DATA"))
    yield "roots-without-set", "E_SECTION_ORDER", File().build(with_one(b"SHRD", b"", b"DATA"))
    yield "file-in-later-shard", "E_SECTION_ORDER", later.build(
        lambda sections: [x for s in sections for x in
                          ([(b"FILE", 1, b"x", 1 | 1 << 32)] if s[0] == b"DATA" else []) +
                          [(*s[:2], s[2] + b"f", s[3]) if s[0] == b"NAME" else s]])
    yield "map-missing", "E_SECTION_ORDER", compressed.build(without(b"ZMAP"))
    yield "map-without-bit", "E_SECTION_ORDER", File().build(with_one(b"ZMAP", b"", b"DATA"))
    yield "data-not-last", "E_SECTION_ORDER", File().build(
        lambda sections: sections + [(b"note", 0, b"", 0)])
    yield "section-flags-more", "E_SECTION_ORDER", table(File().build(), "META", 4, u32(3))


def of_sections(raw):
    yield "section-wrap", "E_SECTION_BOUNDS", table(raw, "DATA", 16, u64((1 << 64) - 4096))
    late = bytearray(raw[:-32] + bytes(8) + raw[-32:])
    late[16:24] = late[-16:-8] = u64(len(late))
    late[120:128] = xxh64(bytes(late[:120]))
    yield "trailer-late", "E_SECTION_BOUNDS", bytes(late)
    for kind in (b"TSRT", b"NAME", b"CHNK", b"LEDG", b"META"):
        yield f"aux-{kind.decode()}", "E_SECTION_SIZE", File().build(replaced(kind, aux=1))
    yield "aux-SHRD", "E_SECTION_SIZE", first_of_set().build(replaced(b"SHRD", aux=1))
    yield "aux-ZMAP", "E_SECTION_SIZE", one_chunk().build(replaced(b"ZMAP", aux=1))
    for kind, more in [(b"TIDX", 8), (b"TSRT", 4), (b"CHNK", 4), (b"LEDG", 128)]:
        yield f"size-{kind.decode()}", "E_SECTION_SIZE", File().build(
            replaced(kind, change=lambda old, more=more: old + bytes(more)))
    yield "size-SHRD", "E_SECTION_SIZE", first_of_set().build(
        replaced(b"SHRD", change=lambda old: old + bytes(16)))
    yield "size-ZMAP", "E_SECTION_SIZE", one_chunk().build(
        replaced(b"ZMAP", change=lambda old: old + bytes(24)))
    yield "data-aux", "E_SECTION_SIZE", File().build(replaced(b"DATA", aux=8))
    yield "image-limit", "E_SECTION_SIZE", one_chunk().build(replaced(b"DATA", aux=(1 << 48) + 1))
    noted = tiny()
    noted.unknown = [(2, b"note", 0, b"skip me")]
    noted = noted.build()
    yield "unknown-digest", "E_SECTION_DIGEST", flip(noted, Edit(noted).where("note")[0])
    yield "file-digest", "E_SECTION_DIGEST", flip(raw, Edit(raw).where("FILE")[0])
    yield "gap-before-data", "E_GAP", flip(raw, 4095)
    yield "gap-behind-data", "E_GAP", flip(raw, len(raw) - 33)


# ---- names, records, geometry -----------------------------------------------------------------


def of_names():
    def named(*names):
        return File([dense(name, [1], U8, 330) for name in names]).build()

    def filed(*names):
        f = File()
        f.files = [(name, b"") for name in names]
        return f.build()

    def name_bytes(change):
        return File([dense("ab", [1], U8, 330)]).build(replaced(b"NAME", change=change))

    yield "name-empty", "E_NAME", named("a", "")
    yield "name-long", "E_NAME", named("n" * 256)
    yield "name-delete", "E_NAME", named("a\x7f")
    yield "name-rest", "E_NAME", name_bytes(lambda old: old + b"c")
    yield "name-beyond", "E_NAME", name_bytes(lambda old: old[:-1])
    yield "file-name-dot", "E_NAME", filed(".hidden")
    yield "file-name-empty", "E_NAME", filed("")
    yield "file-name-long", "E_NAME", filed("f" * 256)
    yield "file-names-equal", "E_NAME", filed("a", "a")
    yield "file-names-order", "E_NAME", filed("b", "a")
    yield "file-name-offset", "E_NAME", File([], [("a", b"")]).build(
        replaced(b"FILE", aux=1 | 1 << 32))


def of_records(raw):
    def record(number, *changes):
        return put(raw, "TIDX", *((160 * number + offset, value) for offset, value in changes))

    for name, *changes in [
            ("rank-zero", (7, b"\0"), (8, bytes(32))), ("rows-none", (168, u64(0))),
            ("columns-none", (176, u64(0))), ("columns-limit", (176, u64(1 << 32))),
            ("bits-above", (201, b"\t")), ("scale-dtype", (202, b"\3")), ("zero-mode", (203, b"\2")),
            ("group-none", (204, u32(0))), ("group-above", (204, u32(16))),
            ("outlier-dtype-none", (200, b"\0")), ("dense-bits", (41, b"\4")),
            ("dense-scale-dtype", (42, b"\1")), ("dense-zero-mode", (43, b"\1")),
            ("dense-group", (44, u32(8))), ("dense-outliers", (48, u64(1))),
            ("auxiliary-dtype", (520, b"\1")), ("auxiliary-bits", (521, b"\4")),
            ("alias-rank", (327, b"\5")), ("alias-product", (328, u64(1 << 49))),
            ("alias-reserved", (479, b"\1"))]:
        yield name, "E_RECORD", record(0, *changes)
    yield "outlier-dtype", "E_RECORD", put(
        File([grouped("w", [1, 8], 4, 8, 0, F16, 300, places=[3])]).build(), "TIDX", (40, b"\2"))
    yield "empty-part-offset", "E_GEOMETRY", record(1, (96, u64(512)))
    yield "empty-part-size", "E_GEOMETRY", record(1, (104, u64(1)))
    yield "alias-part", "E_GEOMETRY", record(2, (64, u64(256)), (72, u64(16)))
    yield "alias-first-chunk", "E_GEOMETRY", record(2, (56, u64(1)))
    for name, *changes in [("alias-other-rank", (7, b"\3"), (24, u64(8)), (16, u64(1))),
                           ("alias-dtype", (40, b"\0")), ("alias-bits", (41, b"\3")),
                           ("alias-scale-dtype", (42, b"\2")), ("alias-zero-mode", (43, b"\1")),
                           ("alias-group", (44, u32(16)))]:
        yield name, "E_ALIAS", record(2, *changes)


def of_geometry():
    f = File([dense("a", [2], U8, 340)])
    yield "chunk-more", "E_GEOMETRY", f.build(replaced(b"CHNK", change=lambda old: old + bytes(8)))
    yield "chunk-less", "E_GEOMETRY", f.build(replaced(b"CHNK", change=lambda old: b""))
    yield "image-longer", "E_GEOMETRY", f.build(
        replaced(b"DATA", aux=10, change=lambda old: old + bytes(8)))
    for name, size, page_from in [("page-late", 65536, 65537), ("page-early", 65535, 65535)]:
        f = File([dense("a", [1], U8, 341), dense("b", [size], U8, 342)])
        f.page_from = page_from
        f.tensors[1].parts[0] = bytes(size)
        yield name, "E_GEOMETRY", f.build()


def of_ledger(raw):
    for name, at, value in [
            ("fallback", 1, b"\4"), ("folded", 3, b"\2"), ("ledger-reserved", 15, b"\1"),
            ("ledger-tail", 127, b"\1"), ("ledger-infinity", 48, u64(0x7FF << 52)),
            ("ledger-minus-zero", 56, u64(1 << 63)), ("ledger-damping", 64, struct.pack("<d", -0.5)),
            ("ledger-minus-nan", 40, u64(0xFFF8 << 48))]:
        yield name, "E_LEDGER", put(raw, "LEDG", (at, value))


# ---- chunks and values ------------------------------------------------------------------------


def of_stored_chunks():
    f = File([dense("a", [40], U8, 310), dense("b", [40], U8, 311)])
    f.is_compressed = True

    def emptied(sections):
        """The second chunk is stored in no bytes."""
        return [(kind, flags, old[:32] + u32(0) + old[36:40] + xxh64(b"") if kind == b"ZMAP" else
                 old[:40] if kind == b"DATA" else old, aux) for kind, flags, old, aux in sections]

    yield "stored-nothing", "E_ZMAP", f.build(emptied)
    yield "stored-rest", "E_ZMAP", f.build(replaced(b"DATA", change=lambda old: old + b"rest"))
    raw = f.tensors[0].parts[0]
    legacy = b"\x27\xb5\x2f\xfd\xa0" + u32(40) + bytes([0x40, 0, 40]) + raw + b"\xc0\0\0"
    skippable = b"\x50\x2a\x4d\x18" + u32(4) + b"skip"
    for name, packed in [
            ("frame-no-size", frame(raw, size=False, window=0)),
            ("frame-other-size", frame(raw, size=41)), ("frame-dictionary", frame(raw, dictionary=7)),
            ("frame-window", frame(raw, window=22 << 3)), ("frame-twice", frame(raw) + frame(b"")),
            ("frame-behind-skippable", skippable + frame(raw)),
            ("frame-before-skippable", frame(raw) + skippable), ("frame-cut", frame(raw)[:-1]),
            ("frame-checksum", frame(raw, checksum=True)[:-1] + b"\0"),
            ("frame-of-zstd-0.7", legacy)]:
        yield name, "E_COMPRESSION", one_chunk(packed).build()
    yield "frame-other-content", "E_CHUNK_DIGEST", one_chunk(frame(raw[::-1])).build()


def of_values():
    raw = tiny().build()
    yield "code-padding-row", "E_CODE_PADDING", part(raw, 0, 0, 31, b"\1")
    yield "scale-negative", "E_SCALE", part(raw, 0, 1, 2, b"\1\xf8")
    yield "scale-infinity", "E_SCALE", part(raw, 0, 1, 0, b"\0\x7c")
    for name, dtype, value in [
            ("scale-BF16-large", BF16, struct.pack("<H", 227 << 7 | 1)),
            ("scale-F32-large", F32, u32(227 << 23 | 1)), ("scale-F32-small", F32, u32((27 << 23) - 1)),
            ("scale-F32-nan", F32, u32(0x7FC00000))]:
        of_dtype = File([grouped("w", [1, 8], 4, 8, 0, dtype, 350)]).build()
        yield name, "E_SCALE", part(of_dtype, 0, 1, 0, value)


def more_invalid():
    """(name, code, bytes)"""
    raw = tiny().build()
    return [*of_superblock(raw), *of_order(), *of_sections(raw), *of_names(),
            *of_records(small().build()), *of_geometry(), *of_ledger(raw), *of_stored_chunks(),
            *of_values()]


# ---- sets -------------------------------------------------------------------------------------


def pair(**of_second):
    """A set of two, its second shard changed before the first names its root."""
    shards = [File([dense("a", [2], U8, 360)]), File([dense("b", [2], U8, 361)])]
    for i, f in enumerate(shards):
        f.shard, f.shards = i, 2
    for key, value in of_second.items():
        setattr(shards[1], key, value)
    shards[0].roots = shards[1].build()[88:104]
    return shards


def colliding():
    """Two texts of 32 bytes with the same XXH3-128.  Inputs of that length are multiplied with words
    of the secret: a half of each pair is chosen to make the product zero, the sums to be equal."""
    low, high, one = 0xBE4BA423396CFEB8, 0x1CAD21F72C81017C, 1
    texts = [u64(low) + u64(high + one) + bytes(16), u64(low + one) + u64(high) + bytes(16)]
    assert len({xxhash.xxh3_128_intdigest(text) for text in texts}) == 1
    return texts


def more_invalid_sets():
    """(name, code, file that is opened, {file: bytes})"""
    def named(stem, code, shards, opened=0):
        files = {shard_name(stem, i, 2): f if isinstance(f, bytes) else f.build()
                 for i, f in enumerate(shards) if f}
        return stem, code, shard_name(stem, opened, 2), files

    yield named("set-profile", "E_SHARD", pair(profile=1))
    yield named("set-id", "E_SHARD", pair(set_id=b"another set, yes"))
    yield named("set-meta", "E_SHARD", pair(meta=b'{"a":1}'), 1)
    first, second = pair(meta=colliding()[1])
    first.meta = colliding()[0]
    yield named("set-meta-collision", "E_SHARD", [first, second])
    first, second = pair()
    second.tensors[0] = dense("b", [2], U8, 362)
    yield named("set-root", "E_SHARD", [first, second])
    yield named("set-count", "E_SHARD", pair(shards=3))
    first, second = pair()
    first.shards, first.roots = 3, first.roots + bytes(16)
    yield named("set-first-count", "E_SHARD", [first, second], 1)
    first, second = pair()
    yield named("set-damaged", "E_SUPERBLOCK_DIGEST", [first, flip(second.build(), 72)])
    yield named("set-first-missing", "E_SHARD_MISSING", [None, second], 1)
    for name in ("set-unnamed.ingot", "set-of-three-00001-of-00003.ingot",
                 "set-from-zero-00000-of-00002.ingot", "set-letters-0000a-of-00002.ingot"):
        yield name, "E_SHARD_MISSING", name, {name: first.build()}
