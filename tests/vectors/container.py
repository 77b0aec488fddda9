"""A writer of containers from spec/container.md alone, for test vectors.

Nothing is drawn from a random number generator: bytes come from XXH3 of a counter, so that the
vectors are the same everywhere.  zstd frames are written by hand (raw and RLE blocks, RFC 8878,
section 3.1.1), because the bytes of a compressor differ between its versions.
"""

import struct
from fractions import Fraction

import numpy as np
import xxhash

CHUNK = 1 << 20
DENSE, GROUPED, ALIAS, AUXILIARY = range(4)
F32, F16, BF16, I32, U8 = range(5)
SIZE = (4, 2, 2, 4, 1)
NOT_COMPUTED = struct.pack("<Q", 0x7FF8000000000000)
LEDGER = bytes(32) + NOT_COMPUTED * 5 + bytes(56)


def align(x, a):
    return -(-x // a) * a


def xxh64(raw):
    return xxhash.xxh3_64_intdigest(raw).to_bytes(8, "little")


def xxh128(raw):
    return xxhash.xxh3_128_intdigest(raw).to_bytes(16, "little")


def stream(seed, count):
    """count bytes that depend on seed alone."""
    blocks = (xxh64(struct.pack("<QQ", seed, i)) for i in range(-(-count // 8)))
    return b"".join(blocks)[:count]


def numbers(seed, count, below):
    raw = np.frombuffer(stream(seed, 4 * count), "<u4")
    return [int(x) % below for x in raw]


def frame(raw, size=None, dictionary=None, window=None, checksum=False):
    """One zstd frame: raw blocks, or RLE ones where a block is one byte repeated.

    size: content size of 4 bytes, that of raw unless told, False: none; dictionary: id of one byte;
    window: descriptor byte, without one the frame is a single segment."""
    descriptor = (0 if size is False else 0x80) | (0x20 if window is None else 0)
    descriptor |= 4 * checksum + (dictionary is not None)
    out = b"\x28\xb5\x2f\xfd" + bytes([descriptor])
    out += b"" if window is None else bytes([window])
    out += b"" if dictionary is None else bytes([dictionary])
    out += b"" if size is False else struct.pack("<I", len(raw) if size is None else size)
    for at in range(0, len(raw), 1 << 17):
        block = raw[at:at + (1 << 17)]
        is_last = at + len(block) == len(raw)
        is_rle = block == block[:1] * len(block)
        out += (int(is_last) | int(is_rle) << 1 | len(block) << 3).to_bytes(3, "little")
        out += block[:1] if is_rle else block
    return out + (xxhash.xxh64_intdigest(raw).to_bytes(8, "little")[:4] if checksum else b"")


class Tensor:
    """Fields of a record, the bytes of its parts, and what a reader must give."""

    def __init__(self, name, kind, dims, dtype, parts, bits=0, scale_dtype=0, zero_mode=0, group=0,
                 outliers=0, values=b""):
        self.name, self.kind, self.dims, self.dtype, self.parts = name, kind, dims, dtype, parts
        self.bits, self.scale_dtype, self.zero_mode = bits, scale_dtype, zero_mode
        self.group, self.outliers, self.values = group, outliers, values
        self.ledger = LEDGER

    def record(self, name_at, first, offsets):
        dims = list(self.dims) + [0] * (4 - len(self.dims))
        return struct.pack("<IHBB4Q4BIQQ8Q32x", name_at, len(self.name), self.kind, len(self.dims),
                           *dims, self.dtype, self.bits, self.scale_dtype, self.zero_mode,
                           self.group, self.outliers, first, *offsets)


def dense(name, dims, dtype, seed, kind=DENSE):
    """values: the bytes themselves; floats are kept finite so that JSON tools can show them."""
    count = int(np.prod(dims, dtype=object))
    raw = bytearray(stream(seed, count * SIZE[dtype]))
    for i in range(count):
        if dtype in (F16, BF16):
            raw[2 * i + 1] = raw[2 * i + 1] & 0x83 | 0x38
        elif dtype == F32:
            raw[4 * i + 3] = raw[4 * i + 3] & 0x81 | 0x3C
    return Tensor(name, kind, dims, dtype, [bytes(raw), b"", b"", b""], values=bytes(raw))


def scale_bits(seed, dtype, index):
    """A legal scale: ordinary ones, and in turn the limits of quantization.md, section 2."""
    special = {F16: [0, 0x8000, 0x0001, 0x7800, 0xF800, 0x03FF],
               BF16: [0, 27 << 7, 227 << 7, 1 << 15],
               F32: [0, 27 << 23, 227 << 23, 1 << 31 | 27 << 23]}[dtype]
    if index < len(special):
        return special[index]
    x = numbers(seed + index, 1, 1 << 30)[0]
    if dtype == F16:
        return (x & 0x83FF) | 0x2800 | (x >> 16 & 0x0400)
    bits = (x & 0x007FFFFF) | 0x3D000000 | (x & 1) << 31
    return bits >> 16 if dtype == BF16 else bits


def scale_value(bits, dtype):
    if dtype == F16:
        return Fraction(float(np.array([bits], "<u2").view("<f2")[0]))
    word = bits << 16 if dtype == BF16 else bits
    return Fraction(float(np.array([word], "<u4").view("<f4")[0]))


def round32(exact):
    """To nearest, ties to even."""
    guess = np.float32(float(exact))
    near = [guess] + [np.nextafter(guess, np.float32(end)) for end in (np.inf, -np.inf)]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view("u4")) & 1))


def pack_row(codes, bits):
    size = align(-(-len(codes) * bits // 8), 16)
    return sum(code << k * bits for k, code in enumerate(codes)).to_bytes(size, "little")


def grouped(name, dims, bits, group, zero_mode, scale_dtype, seed, places=(), dtype=F16):
    """places: flat indices of outliers, increasing."""
    k = dims[-1]
    n = int(np.prod(dims[:-1], dtype=object)) if len(dims) > 1 else 1
    group = group or k
    groups = -(-k // group)
    codes = np.array(numbers(seed, n * k, 1 << bits)).reshape(n, k)
    zeros = np.array(numbers(seed + 1, n * groups, 1 << bits)).reshape(n, groups)
    if not zero_mode:
        zeros[:] = 1 << (bits - 1)
    scales = [scale_bits(seed + 2, scale_dtype, i) for i in range(n * groups)]
    kept = {}
    for i, place in enumerate(places):
        row, col = divmod(place, k)
        codes[row, col] = zeros[row, col // group]
        half = (numbers(seed + 3 + i, 1, 1 << 15)[0] & 0x83FF) | 0x4400
        kept[place] = np.array([half], "<u2").view("<f2")[0]
    values = []
    for row in range(n):
        for col in range(k):
            at = row * groups + col // group
            if row * k + col in kept:
                values.append(np.float32(kept[row * k + col]))
            else:
                steps = int(codes[row, col]) - int(zeros[row, col // group])
                values.append(round32(scale_value(scales[at], scale_dtype) * steps))
    part3 = b""
    if places:
        ends = [sum(p < row * k for p in places) for row in range(n + 1)]
        part3 = struct.pack(f"<{n + 1}Q", *ends)
        part3 += struct.pack(f"<{len(places)}I", *(p % k for p in places))
        part3 += bytes(len(places) % 2 * 4)
        part3 += b"".join(v.tobytes() if dtype == F16 else np.float32(v).tobytes()
                          for v in kept.values())
    parts = [b"".join(pack_row([int(c) for c in row], bits) for row in codes),
             b"".join(s.to_bytes(SIZE[scale_dtype], "little") for s in scales),
             bytes(int(z) for z in zeros.ravel()) if zero_mode else b"", part3]
    return Tensor(name, GROUPED, dims, dtype, parts, bits, scale_dtype, zero_mode, group,
                  len(places), np.array(values, "<f4").tobytes())


def alias(name, target, index):
    return Tensor(name, ALIAS, target.dims, target.dtype, [b""] * 4, target.bits,
                  target.scale_dtype, target.zero_mode, target.group, index, target.values)


class File:
    """A container in the making; the defaults are those of a writer of version 1.0."""

    def __init__(self, tensors=(), files=(), meta=b"{}"):
        self.tensors, self.files, self.meta = list(tensors), sorted(files), meta
        self.profile = self.minor = self.ro_compat = self.compat = 0
        self.incompat = 0
        self.is_compressed = False
        self.order = None       # of stored chunks
        self.frames = {}        # chunk -> its frame, where it is not frame(chunk)
        self.page_from = 65536  # parts from this size on are aligned to a page
        self.shard, self.shards, self.set_id = 0, 1, bytes(16)
        self.roots = b""        # of the other shards
        self.unknown = []       # (place, type, flags, bytes)

    def image(self):
        """Image, chunks, and per tensor (first chunk, offsets and sizes)."""
        image, chunks, places = bytearray(), [], []
        for t in self.tensors:
            first, offsets = len(chunks), []
            for raw in t.parts:
                if not raw:
                    offsets += [0, 0]
                    continue
                image += bytes(align(len(image), 4096 if len(raw) >= self.page_from else 256) - len(image))
                offsets += [len(image), len(raw)]
                image += raw
                chunks += [raw[i:i + CHUNK] for i in range(0, len(raw), CHUNK)]
            places.append((first, offsets))
        return bytes(image), chunks, places

    def compressed(self, chunks):
        entries, data = [b""] * len(chunks), b""
        for i in self.order or range(len(chunks)):
            packed = self.frames.get(i) or frame(chunks[i])
            codec = int(i in self.frames or len(packed) < len(chunks[i]))
            raw = packed if codec else chunks[i]
            entries[i] = struct.pack("<QII", len(data), len(raw), codec) + xxh64(raw)
            data += raw
        return b"".join(entries), data

    def sections(self):
        image, chunks, places = self.image()
        names = [t.name.encode() for t in self.tensors]
        at, records = 0, []
        for t, (first, offsets) in zip(self.tensors, places):
            records.append(t.record(at, first, offsets))
            at += len(t.name)
        order = sorted(range(len(names)), key=lambda i: names[i])
        out = [(b"TIDX", 1, b"".join(records), 0),
               (b"TSRT", 1, struct.pack(f"<{len(order)}I", *order), 0),
               (b"NAME", 1, b"".join(names) + b"".join(n.encode() for n, _ in self.files), 0),
               (b"CHNK", 1, b"".join(map(xxh64, chunks)), 0),
               (b"LEDG", 1, b"".join(t.ledger for t in self.tensors), 0),
               (b"META", 1, self.meta, 0)]
        for name, raw in self.files:
            out.append((b"FILE", 1, raw, at | len(name) << 32))
            at += len(name)
        if self.shards > 1 and self.shard == 0:
            out.append((b"SHRD", 1, self.roots, 0))
        data = image
        if self.is_compressed:
            entries, data = self.compressed(chunks)
            out.append((b"ZMAP", 1, entries, 0))
        for place, kind, flags, raw in self.unknown:
            out.insert(place, (kind, flags, raw, 12345))
        return out + [(b"DATA", 1, data, len(image))]

    def build(self, change=None):
        """change: sections -> sections, before offsets and digests are made."""
        sections = change(self.sections()) if change else self.sections()
        table, body, start = b"", bytearray(), 128 + 48 * len(sections)
        for kind, flags, raw, aux in sections:
            offset = align(start + len(body), 4096 if kind == b"DATA" else 8)
            body += bytes(offset - start - len(body)) + raw
            table += struct.pack("<4sIQQQ", kind, flags, offset, len(raw), aux)
            table += bytes(16) if kind == b"DATA" else xxh128(raw)
        body += bytes(-(start + len(body)) % 8)
        size, root = start + len(body) + 32, xxh128(table)
        block = struct.pack("<8sHHIQQQQQ4I16s16s16x", b"\x89IGT\r\n\x1a\n", 1, self.minor, 128, size,
                            self.incompat | int(self.is_compressed), self.ro_compat, self.compat,
                            128, len(sections), self.profile, self.shard, self.shards, self.set_id,
                            root)
        return (block + xxh64(block) + table + bytes(body) + root + struct.pack("<Q", size) +
                b"IGTEND\r\n")


def content_id(shards):
    """Of the File objects of a set, in order (section 11)."""
    records, names, digests, before = b"", b"", b"", 0
    for f in shards:
        _, chunks, places = f.image()
        for t, (_, offsets) in zip(f.tensors, places):
            sizes = [x if i % 2 else 0 for i, x in enumerate(offsets)]
            record = bytearray(t.record(0, 0, sizes))
            if t.kind == ALIAS:
                record[48:56] = struct.pack("<Q", t.outliers + before)
            records += bytes(record)
            names += t.name.encode()
        digests += b"".join(map(xxh64, chunks))
        before += len(f.tensors)
    return xxhash.xxh3_128_hexdigest(records + names + digests)


class Edit:
    """A built container that is changed; digests above a change are repaired on request."""

    def __init__(self, raw):
        self.raw = bytearray(raw)

    def entry(self, kind):
        count = struct.unpack_from("<I", self.raw, 56)[0]
        for i in range(count):
            if self.raw[128 + 48 * i:132 + 48 * i] == kind.encode():
                return 128 + 48 * i
        raise KeyError(kind)

    def where(self, kind):
        return struct.unpack_from("<QQ", self.raw, self.entry(kind) + 8)

    def put(self, at, raw):
        self.raw[at:at + len(raw)] = raw
        return self

    def flip(self, at, bit=0):
        self.raw[at] ^= 1 << bit
        return self

    def repair_chunks(self):
        """CHNK of a file that is not compressed, from DATA."""
        data, chunk = self.where("DATA")[0], self.where("CHNK")[0]
        start, size = self.where("TIDX")
        for record in range(start, start + size, 160):
            fields = struct.unpack_from("<8Q", self.raw, record + 64)
            for offset, length in zip(fields[::2], fields[1::2]):
                for at in range(0, length, CHUNK):
                    first = data + offset + at
                    part = bytes(self.raw[first:first + min(CHUNK, length - at)])
                    self.put(chunk, xxh64(part))
                    chunk += 8
        return self

    def repair(self, sections=True):
        count, = struct.unpack_from("<I", self.raw, 56)
        for i in range(count if sections else 0):
            at = 128 + 48 * i
            offset, size = struct.unpack_from("<QQ", self.raw, at + 8)
            if self.raw[at:at + 4] != b"DATA" and offset + size <= len(self.raw):
                self.put(at + 32, xxh128(bytes(self.raw[offset:offset + size])))
        root = xxh128(bytes(self.raw[128:128 + 48 * count]))
        self.put(88, root).put(len(self.raw) - 32, root)
        return self.put(120, xxh64(bytes(self.raw[:120])))
