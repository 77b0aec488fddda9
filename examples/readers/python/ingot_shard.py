"""One file of Ingot containers: steps 1 to 22 and 24 to 27 of spec/container.md, section 12.

What it is: tables of a file that has passed the steps of open, and its chunks, checked.  numpy
alone does for a basic reader; digests need the package `xxhash`, compressed files `zstandard`.
What it is not: the set of shards (ingot_reader.py), or the values (ingot_values.py).

Steps work on whole tables at once: records are columns of numpy, sums of unsigned integers are
formed only where an earlier step or line has bounded them.
"""

import os
import re
import stat
import struct
from collections import namedtuple

import numpy as np

from ingot_values import (BF16, DTYPE_BYTES, DTYPE_NUMPY, F16, F32, U8, align, dequantize,
                          padding_is_zero, scales_are_legal, to_f32)

try:
    import xxhash
except ImportError:
    xxhash = None
try:
    import zstandard
except ImportError:
    zstandard = None

MAGIC = b"\x89IGT\r\n\x1a\n"
TRAILER_MAGIC = b"IGTEND\r\n"
SUPERBLOCK_BYTES, SECTION_BYTES, TRAILER_BYTES = 128, 48, 32
CHUNK_BYTES = 1 << 20
MAX_IMAGE_BYTES = MAX_ELEMENTS = MAX_FILE_BYTES = 1 << 48
MAX_SECTION_BYTES = 256 << 20
MAX_META_BYTES = 16 << 20
MAX_TENSORS = 1 << 20
MAX_SECTIONS, MAX_SHARDS = 64, 9999
INCOMPAT_COMPRESSED = 1
# Rows, or outliers, that are looked at together.
BLOCK = 1 << 16

# Section types in the order of section 2; UNBOUNDED ones may exceed MAX_SECTION_BYTES.
ORDER = (b"TIDX", b"TSRT", b"NAME", b"CHNK", b"LEDG", b"META", b"FILE", b"SHRD", b"ZMAP", b"DATA")
UNBOUNDED = (b"CHNK", b"ZMAP", b"DATA")

DENSE, GROUPED, ALIAS, AUXILIARY = range(4)
KINDS = ("dense", "grouped", "alias", "auxiliary")

Section = namedtuple("Section", "type flags offset size aux digest")
File = namedtuple("File", "name offset size")

SUPERBLOCK = struct.Struct("<8sHHIQQQQQIIII16s16s16sQ")
SECTION = struct.Struct("<4sIQQQ16s")
RECORD = np.dtype([
    ("name_offset", "<u4"), ("name_length", "<u2"), ("kind", "u1"), ("rank", "u1"),
    ("dims", "<u8", 4), ("dtype", "u1"), ("bits", "u1"), ("scale_dtype", "u1"),
    ("zero_mode", "u1"), ("group", "<u4"), ("outliers", "<u8"), ("first_chunk", "<u8"),
    ("parts", [("offset", "<u8"), ("size", "<u8")], 4), ("reserved", "u1", 32)])
LEDGER = np.dtype([
    ("method", "u1"), ("fallback", "u1"), ("damping_step", "u1"), ("folded", "u1"),
    ("dead_columns", "<u4"), ("low_scales", "<u4"), ("reserved", "u1", 4), ("tokens", "<u8"),
    ("outliers", "<u8"), ("figures", "<u8", 5), ("source_digest", "u1", 16),
    ("reserved_end", "u1", 40)])
STORED_CHUNK = np.dtype([
    ("offset", "<u8"), ("length", "<u4"), ("codec", "<u4"), ("digest", "<u8")])
assert SUPERBLOCK.size == SUPERBLOCK_BYTES and SECTION.size == SECTION_BYTES
assert (RECORD.itemsize, LEDGER.itemsize, STORED_CHUNK.itemsize) == (160, 128, 24)


class IngotError(Exception):
    """A broken rule, or a failure of the system: `code` is stable, the text is not."""

    def __init__(self, code, reason, path=None, tensor=None):
        self.code, self.reason, self.path, self.tensor = code, reason, path, tensor
        where = [str(x) for x in (path, tensor) if x]
        super().__init__(": ".join(where + [f"{reason} ({code})"]))


def first_true(mask):
    """The index of the first true element, or None."""
    return int(np.argmax(mask)) if mask.any() else None


def printable(raw):
    """Bytes from the file as text that is safe to print."""
    return ascii(bytes(raw).decode("latin-1"))[1:-1]


def xxh3_128(pieces):
    """XXH3-128 of an iterable of buffers, as a number."""
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.intdigest()


def number(raw):
    """A stored digest as a number."""
    return int.from_bytes(raw, "little")


# ---- one file: steps 1 to 22 ----------------------------------------------------------------


class Shard:
    """One file that has passed steps 1 to 22.  Holds tables, never weights."""

    def __init__(self, path, digests):
        self.path, self.digests, self.handle = os.fspath(path), digests, None
        try:
            self._open_handle()
            self._step_1_to_9_superblock()
            self._step_10_root()
            self._step_11_order()
            self._step_12_bounds()
            self._step_13_sizes()
            if digests:
                self._step_14_digests()
                self._step_15_gaps()
            self._step_16_names()
            self._step_17_records()
            self._step_18_geometry()
            self._step_19_aliases()
            self._step_20_sort()
            self._step_21_ledger()
            self._step_22_stored_chunks()
        except BaseException:
            self.close()
            raise

    def fail(self, code, reason, record=None):
        name = None if record is None else self.name_text(record)
        raise IngotError(code, reason, self.path, name)

    def name_text(self, record):
        names = getattr(self, "names", None)
        return printable(names[record]) if names else f"record {record}"

    # -- bytes of the file

    def _open_handle(self):
        try:
            info = os.stat(self.path)
            if not stat.S_ISREG(info.st_mode):
                self.fail("E_IO", "is not a regular file")
            self.handle = open(self.path, "rb", buffering=0)
            self.size = os.fstat(self.handle.fileno()).st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise IngotError("E_NOT_FOUND", error.strerror, self.path) from error
        except OSError as error:
            raise IngotError("E_IO", error.strerror, self.path) from error

    def close(self):
        if self.handle:
            self.handle.close()
        self.handle = None

    def read(self, offset, size):
        """Exactly size bytes, as array of u8; the caller has checked both against the file."""
        if self.handle is None:
            self._open_handle()
        try:
            buffer = np.empty(size, "u1")
            view, done = memoryview(buffer), 0
            self.handle.seek(offset)
            while done < size:
                count = self.handle.readinto(view[done:])
                if not count:
                    self.fail("E_IO", "became shorter while it was read")
                done += count
        except OSError as error:
            raise IngotError("E_IO", error.strerror, self.path) from error
        except MemoryError as error:
            raise IngotError("E_NO_MEMORY", f"no memory for {size} bytes", self.path) from error
        return buffer

    def pieces(self, offset, size):
        """The same in pieces of a chunk, for what may be larger than memory."""
        for start in range(offset, offset + size, CHUNK_BYTES):
            yield self.read(start, min(CHUNK_BYTES, offset + size - start))

    # -- open, step by step

    def _step_1_to_9_superblock(self):
        if self.size < SUPERBLOCK_BYTES + TRAILER_BYTES:
            self.fail("E_TOO_SHORT", "is shorter than any container")
        raw = self.read(0, SUPERBLOCK_BYTES).tobytes()
        (magic, self.major, self.minor, size, file_size, self.incompat, self.ro_compat,
         self.compat, table, count, self.profile, self.index, self.count, self.set_id, self.root,
         reserved, digest) = SUPERBLOCK.unpack(raw)
        if magic != MAGIC:
            self.fail("E_MAGIC", "is not an Ingot container")
        if self.digests and xxhash.xxh3_64_intdigest(raw[:120]) != digest:
            self.fail("E_SUPERBLOCK_DIGEST", "the superblock is damaged")
        if self.major != 1:
            self.fail("E_VERSION", f"format version {self.major} is not known to this reader")
        if self.incompat & ~INCOMPAT_COMPRESSED:
            self.fail("E_INCOMPAT", f"needs features {self.incompat:#x} of a later reader")
        self.compressed = bool(self.incompat & INCOMPAT_COMPRESSED)
        if (size != SUPERBLOCK_BYTES or table != SUPERBLOCK_BYTES or count > MAX_SECTIONS
                or self.profile > 2 or not 1 <= self.count <= MAX_SHARDS
                or self.index >= self.count or file_size > MAX_FILE_BYTES or any(reserved)):
            self.fail("E_SUPERBLOCK", "the superblock has illegal values")
        if file_size != self.size:
            self.fail("E_FILE_SIZE", f"has {self.size} bytes, not {file_size}")
        self.trailer = self.size - TRAILER_BYTES
        trailer = self.read(self.trailer, TRAILER_BYTES).tobytes()
        if trailer != self.root + struct.pack("<Q", file_size) + TRAILER_MAGIC:
            self.fail("E_TRAILER", "the trailer does not match the superblock")
        self.table_end = SUPERBLOCK_BYTES + SECTION_BYTES * count
        if self.table_end > self.trailer:
            self.fail("E_TABLE", "the section table does not fit the file")

    def _step_10_root(self):
        raw = self.read(SUPERBLOCK_BYTES, self.table_end - SUPERBLOCK_BYTES).tobytes()
        if self.digests and xxh3_128([raw]) != number(self.root):
            self.fail("E_ROOT", "the section table is damaged")
        self.sections = [Section(*fields) for fields in SECTION.iter_unpack(raw)]

    def _step_11_order(self):
        place = -1
        for s in self.sections:
            if s.type not in ORDER:
                if s.flags & 1:
                    self.fail("E_CRITICAL_SECTION", f"unknown critical section "
                              f"'{printable(s.type)}': a later reader is needed")
                continue
            here = ORDER.index(s.type)
            if here < place or (here == place and s.type != b"FILE") or s.flags != 1:
                self.fail("E_SECTION_ORDER", f"section {printable(s.type)} is out of order")
            place = here
        self.by_type = {s.type: s for s in self.sections}
        for kind in ORDER:
            present, wanted = kind in self.by_type, True
            if kind == b"FILE":
                wanted = present and self.index == 0
            elif kind == b"SHRD":
                wanted = self.count > 1 and self.index == 0
            elif kind == b"ZMAP":
                wanted = self.compressed
            if present != wanted:
                self.fail("E_SECTION_ORDER", f"section {kind.decode()} is "
                          + ("missing" if wanted else "not allowed here"))
        if self.sections[-1].type != b"DATA":
            self.fail("E_SECTION_ORDER", "DATA is not the last section")

    def _step_12_bounds(self):
        end = self.table_end
        for s in self.sections:
            wanted = align(end, 4096 if s.type == b"DATA" else 8)
            if s.offset != wanted or s.offset + s.size > self.trailer:
                self.fail("E_SECTION_BOUNDS", f"section {printable(s.type)} is not in its place")
            end = s.offset + s.size
        if align(end, 8) != self.trailer:
            self.fail("E_SECTION_BOUNDS", "the trailer does not follow DATA")

    def _step_13_sizes(self):
        size = {kind: s.size for kind, s in self.by_type.items()}
        self.tensors = size[b"TIDX"] // RECORD.itemsize
        self.chunks = size[b"CHNK"] // 8
        exact = {b"TIDX": RECORD.itemsize * self.tensors, b"TSRT": 4 * self.tensors,
                 b"CHNK": 8 * self.chunks, b"LEDG": LEDGER.itemsize * self.tensors,
                 b"SHRD": 16 * (self.count - 1), b"ZMAP": STORED_CHUNK.itemsize * self.chunks}
        for s in self.sections:
            legal = s.size <= MAX_SECTION_BYTES or s.type in UNBOUNDED
            legal = legal and s.size == exact.get(s.type, s.size)
            if s.type == b"META":
                legal = legal and s.size <= MAX_META_BYTES
            if s.type == b"DATA":
                legal = s.aux <= MAX_IMAGE_BYTES and (self.compressed or s.aux == s.size)
            elif s.type in ORDER and s.type != b"FILE":
                legal = legal and s.aux == 0
            if not legal or self.tensors > MAX_TENSORS:
                self.fail("E_SECTION_SIZE", f"section {printable(s.type)} has an illegal size")

    def _step_14_digests(self):
        for s in self.sections:
            digest = 0 if s.type == b"DATA" else xxh3_128(self.pieces(s.offset, s.size))
            if number(s.digest) != digest:
                self.fail("E_SECTION_DIGEST", f"section {printable(s.type)} is damaged")

    def _step_15_gaps(self):
        end = self.table_end
        for offset, size in [(s.offset, s.size) for s in self.sections] + [(self.trailer, 0)]:
            if self.read(end, offset - end).any():
                self.fail("E_GAP", f"bytes between sections are not zero, from {end}")
            end = offset + size

    def table(self, kind, dtype):
        s = self.by_type[kind]
        return self.read(s.offset, s.size).view(dtype)

    def _step_16_names(self):
        self.records = self.table(b"TIDX", RECORD)
        raw = self.table(b"NAME", "u1").tobytes()
        lengths = self.records["name_length"].astype("u8")
        ends = np.cumsum(lengths, dtype="u8")
        bad = first_true((lengths < 1) | (lengths > 255) | (ends > len(raw))
                         | (self.records["name_offset"] != ends - lengths))
        if bad is not None:
            self.fail("E_NAME", "the name is not in its place", bad)
        end = int(ends[-1]) if self.tensors else 0
        if re.search(rb"[^\x21-\x7e]", raw[:end]):
            self.fail("E_NAME", "a tensor name has illegal characters")
        self.names = [raw[e - n:e] for e, n in zip(ends.tolist(), lengths.tolist())]
        self.files = []
        for s in self.sections:
            if s.type != b"FILE":
                continue
            length, name = s.aux >> 32, raw[end:end + (s.aux >> 32)]
            if (s.aux & 0xFFFFFFFF != end or not 1 <= length <= 255 or len(name) != length
                    or not re.fullmatch(rb"[A-Za-z0-9_-][A-Za-z0-9._-]*", name)
                    or (self.files and self.files[-1].name >= name)):
                self.fail("E_NAME", f"file name '{printable(name)}' is illegal or not in its place")
            self.files.append(File(name, s.offset, s.size))
            end += length
        if end != len(raw):
            self.fail("E_NAME", "names do not cover NAME")

    def _step_17_records(self):
        r = self.records
        kind, dims, rank = r["kind"], r["dims"], r["rank"].astype("i8")
        beyond = np.arange(4) >= rank[:, None]
        bad = (kind > AUXILIARY) | (rank < 1) | (rank > 4) | r["reserved"].any(axis=1)
        bad |= (beyond & (dims != 0)).any(axis=1)
        product = np.ones(self.tensors, "u8")
        for d in np.maximum(dims, 1).T:
            too_large = d > MAX_ELEMENTS // product
            bad |= too_large
            product *= np.where(too_large, 1, d)
        # K is the last dimension, N the product of the others, at most 2^48 where not bad.
        last = np.clip(rank, 1, 4) - 1
        self.columns = np.take_along_axis(dims, last[:, None], axis=1)[:, 0]
        outer_is_empty = ((dims == 0) & (np.arange(4) < last[:, None])).any(axis=1)
        self.rows = np.where(outer_is_empty, 0, product // np.maximum(self.columns, 1))
        n, k, g = self.rows, self.columns, r["group"]
        plain = (kind == DENSE) | (kind == AUXILIARY)
        bad |= plain & ((r["bits"] != 0) | (r["scale_dtype"] != 0) | (r["zero_mode"] != 0)
                        | (g != 0) | (r["outliers"] != 0))
        bad |= (kind == DENSE) & (r["dtype"] > U8)
        bad |= (kind == AUXILIARY) & (r["dtype"] != F32)
        grouped = kind == GROUPED
        bad |= grouped & ((n < 1) | (k < 1) | (k > 0xFFFFFFFF) | (r["bits"] < 2) | (r["bits"] > 8)
                          | (r["scale_dtype"] > BF16) | (r["zero_mode"] > 1))
        bad |= grouped & ((g < 1) | (g > k) | ((g % 8 != 0) & (g != k)))
        bad |= grouped & (r["outliers"] > product)
        bad |= grouped & (r["dtype"] > F16)
        bad |= grouped & (r["outliers"] == 0) & (r["dtype"] != F16)
        if bad.any():
            self.fail("E_RECORD", "the record has illegal values", first_true(bad))

    def _step_18_geometry(self):
        """Sizes of all parts from the shapes; offsets and chunks as section 7 says."""
        r, n, k = self.records, self.rows, self.columns
        size = np.zeros((self.tensors, 4), "u8")
        plain = (r["kind"] == DENSE) | (r["kind"] == AUXILIARY)
        size[plain, 0] = (n * k)[plain] * DTYPE_BYTES[r["dtype"][plain]]
        q = np.flatnonzero(r["kind"] == GROUPED)
        n, k, nnz = n[q], k[q], r["outliers"][q]
        groups = n * ((k + r["group"][q] - 1) // r["group"][q])
        size[q, 0] = n * align((k * r["bits"][q] + 7) // 8, 16)
        size[q, 1] = groups * DTYPE_BYTES[r["scale_dtype"][q]]
        size[q, 2] = groups * r["zero_mode"][q]
        outliers = 8 * (n + 1) + align(4 * nnz, 8) + nnz * DTYPE_BYTES[r["dtype"][q]]
        size[q, 3] = np.where(nnz > 0, outliers, 0)

        offset, wrong = r["parts"]["offset"], r["parts"]["size"] != size
        # Nothing legal lies beyond 2^48; below it the sums that follow cannot wrap around.
        wrong |= (offset > MAX_IMAGE_BYTES) | (size > MAX_IMAGE_BYTES)
        wrong |= (size == 0) & (offset != 0)
        if wrong.any():
            self.fail("E_GEOMETRY", "part sizes do not follow from the shape",
                      first_true(wrong.any(axis=1)))
        present = size.ravel() > 0
        starts, sizes = offset.ravel()[present], size.ravel()[present]
        ends = starts + sizes
        before = np.concatenate([np.zeros(1, "u8"), ends])[:-1]
        wrong = starts != align(before, np.where(sizes >= 65536, 4096, 256).astype("u8"))
        if wrong.any():
            self.fail("E_GEOMETRY", "a part is not in its place",
                      int(np.flatnonzero(present)[first_true(wrong)]) // 4)
        self.gap_before = np.zeros(4 * self.tensors, "u8")
        self.gap_before[present] = starts - before
        self.gap_before = self.gap_before.reshape(-1, 4)

        count = (size + (CHUNK_BYTES - 1)) // CHUNK_BYTES
        end_chunk = np.cumsum(count, dtype="u8").reshape(-1, 4)
        self.part_size, self.part_offset, self.part_chunk = size, offset, end_chunk - count
        wrong = r["first_chunk"] != self.part_chunk[:, 0]
        if wrong.any():
            self.fail("E_GEOMETRY", "the first chunk is wrong", first_true(wrong))
        self.image_size = int(ends[-1]) if len(ends) else 0
        if self.chunks != (int(end_chunk[-1, -1]) if self.tensors else 0):
            self.fail("E_GEOMETRY", "CHNK has another number of chunks than the records")
        if self.by_type[b"DATA"].aux != self.image_size:
            self.fail("E_GEOMETRY", "DATA has another size than the records")

    def _step_19_aliases(self):
        r = self.records
        alias = np.flatnonzero(r["kind"] == ALIAS)
        target = r["outliers"][alias]
        bad = target >= self.tensors
        target = np.where(bad, 0, target).astype("i8")
        bad |= r["kind"][target] == ALIAS
        for field in ("rank", "dtype", "bits", "scale_dtype", "zero_mode", "group"):
            bad |= r[field][alias] != r[field][target]
        bad |= (r["dims"][alias] != r["dims"][target]).any(axis=1)
        if bad.any():
            self.fail("E_ALIAS", "the alias does not repeat a target", int(alias[first_true(bad)]))

    def _step_20_sort(self):
        order = self.table(b"TSRT", "<u4")
        if (order >= self.tensors).any():
            self.fail("E_SORT", "TSRT names a record that does not exist")
        names = [self.names[i] for i in order.tolist()]
        if not all(a < b for a, b in zip(names, names[1:])):
            self.fail("E_SORT", "names do not increase in the order of TSRT")

    def _step_21_ledger(self):
        ledger = self.ledger = self.table(b"LEDG", LEDGER)
        figures = ledger["figures"]
        illegal = (figures >= 0x7FF0000000000000) & (figures != 0x7FF8000000000000)
        bad = ((ledger["method"] > 5) | (ledger["fallback"] > 3) | (ledger["folded"] > 1)
               | ledger["reserved"].any(axis=1) | ledger["reserved_end"].any(axis=1)
               | illegal.any(axis=1))
        if bad.any():
            self.fail("E_LEDGER", "the ledger record has illegal values", first_true(bad))

    def _step_22_stored_chunks(self):
        self.stored = None
        if not self.compressed:
            return
        z = self.stored = self.table(b"ZMAP", STORED_CHUNK)
        bad = (z["length"] < 1) | (z["length"] > CHUNK_BYTES) | (z["codec"] > 1)
        if bad.any():
            self.fail("E_ZMAP", f"stored chunk {first_true(bad)} has illegal values")
        order = np.argsort(z["offset"], kind="stable")
        ends = np.cumsum(z["length"][order], dtype="u8")
        total = int(ends[-1]) if len(ends) else 0
        if (z["offset"][order] != ends - z["length"][order]).any() \
                or total != self.by_type[b"DATA"].size:
            self.fail("E_ZMAP", "stored chunks do not cover DATA exactly")

    # -- tensors: steps 24 to 26 for a chunk

    def chunk_count(self, record, part):
        return -(-int(self.part_size[record, part]) // CHUNK_BYTES)

    def chunk(self, record, part, i, check=True):
        """The decoded bytes of chunk i of a part, as array of u8."""
        start, chunk = i * CHUNK_BYTES, int(self.part_chunk[record, part]) + i
        length = min(CHUNK_BYTES, int(self.part_size[record, part]) - start)
        data, digests = self.by_type[b"DATA"], self.digests and check
        if self.stored is None:
            raw = self.read(data.offset + int(self.part_offset[record, part]) + start, length)
        else:
            entry = self.stored[chunk]
            raw = self.read(data.offset + int(entry["offset"]), int(entry["length"]))
            if digests and xxhash.xxh3_64_intdigest(raw) != int(entry["digest"]):
                self.fail("E_STORED_DIGEST", f"stored chunk {chunk} is damaged", record)
            if entry["codec"] == 1:
                raw = self._decompress(raw.tobytes(), length, chunk, record)
            elif len(raw) != length:
                self.fail("E_COMPRESSION", f"stored chunk {chunk} has another length", record)
        if digests:
            digest = number(self.read(self.by_type[b"CHNK"].offset + 8 * chunk, 8).tobytes())
            if xxhash.xxh3_64_intdigest(raw) != digest:
                self.fail("E_CHUNK_DIGEST", f"chunk {chunk} is damaged", record)
        if check:
            self._step_26_values(record, part, start, raw)
        return raw

    def _decompress(self, raw, length, chunk, record):
        if zstandard is None:
            self.fail("E_UNSUPPORTED", "is compressed, and the package zstandard is not there",
                      record)
        try:
            # The frame says its size before anything is allocated for it.
            frame = zstandard.get_frame_parameters(raw)
            if raw[:4] != b"\x28\xb5\x2f\xfd" or frame.content_size != length or frame.dict_id:
                raise zstandard.ZstdError("not one frame with the size of the chunk")
            decoded = zstandard.ZstdDecompressor().decompress(raw, allow_extra_data=False)
        except zstandard.ZstdError as error:
            self.fail("E_COMPRESSION", f"stored chunk {chunk} does not decode: {error}", record)
        return np.frombuffer(decoded, "u1")

    def _step_26_values(self, record, part, start, raw):
        """Value rules of quantization.md, section 6, for the bytes of a part from start on."""
        r = self.records[record]
        if r["kind"] != GROUPED:
            return
        if part == 0 and not padding_is_zero(raw, start, self._stride(record),
                                             int(self.columns[record]) * int(r["bits"])):
            self.fail("E_CODE_PADDING", "bits behind the last code of a row are not zero", record)
        if part == 1 and not scales_are_legal(raw, int(r["scale_dtype"])):
            self.fail("E_SCALE", "a scale is not finite or out of range", record)
        if part == 2 and (raw > (1 << int(r["bits"])) - 1).any():
            self.fail("E_ZERO_POINT", "a zero point is beyond the largest code", record)

    def _stride(self, record):
        return align(-(-int(self.columns[record]) * int(self.records[record]["bits"]) // 8), 16)

    def part(self, record, part, check):
        """A whole part.  Its size is that of the record: callers bound what they load."""
        try:
            out = np.empty(int(self.part_size[record, part]), "u1")
        except MemoryError as error:
            raise IngotError("E_NO_MEMORY", "no memory for the tensor", self.path,
                             self.name_text(record)) from error
        for i in range(self.chunk_count(record, part)):
            chunk = self.chunk(record, part, i, check)
            out[i * CHUNK_BYTES:i * CHUNK_BYTES + len(chunk)] = chunk
        return out

    # -- tensors: step 27 and values

    def step_27_outliers(self, record):
        """Rules of quantization.md, section 5, with a few chunks in memory at a time."""
        r = self.records[record]
        n, k, nnz = int(self.rows[record]), int(self.columns[record]), int(r["outliers"])
        if r["kind"] != GROUPED or nnz == 0:
            return
        b, g, width = int(r["bits"]), int(r["group"]), int(DTYPE_BYTES[r["dtype"]])
        stride, groups = self._stride(record), -(-k // g)
        codes, zeros, csr = (PartBytes(self, record, part) for part in (0, 2, 3))
        col_at = 8 * (n + 1)
        val_at = col_at + align(4 * nnz, 8)

        def wrong(reason):
            self.fail("E_OUTLIER", reason, record)

        total, last_place = 0, -1
        for row in range(0, n, BLOCK):
            ptr = csr.range(8 * row, 8 * (min(BLOCK, n - row) + 1)).view("<u8")
            if ptr[0] != total or (ptr[1:] < ptr[:-1]).any() or ptr[-1] > nnz:
                wrong("row pointers decrease or are out of range")
            total = int(ptr[-1])
            for i in range(int(ptr[0]), total, BLOCK):
                count = min(BLOCK, total - i)
                index = np.arange(i, i + count, dtype="u8")
                rows = (row + np.searchsorted(ptr, index, side="right") - 1).astype("u8")
                cols = csr.range(col_at + 4 * i, 4 * count).view("<u4").astype("u8")
                vals = to_f32(csr.range(val_at + width * i, width * count), int(r["dtype"]))
                if (cols >= k).any():
                    wrong("a column is out of range")
                # Places in row-major order increase if columns increase in their rows.
                place = rows * np.uint64(k) + cols
                if int(place[0]) <= last_place or (place[1:] <= place[:-1]).any():
                    wrong("columns do not increase")
                last_place = int(place[-1])
                if not np.isfinite(vals).all():
                    wrong("a value is not finite")
                byte = rows * np.uint64(stride) + (cols * np.uint64(b) >> np.uint64(3))
                word = codes.at(byte).astype("u2")
                word |= codes.at(np.minimum(byte + np.uint64(1), codes.size - 1)).astype("u2") << 8
                code = word >> (cols * np.uint64(b) & np.uint64(7)).astype("u2") & ((1 << b) - 1)
                zero = 1 << (b - 1)
                if r["zero_mode"]:
                    zero = zeros.at(rows * np.uint64(groups) + cols // np.uint64(g))
                if (code != zero).any():
                    wrong("the code under an outlier is not its zero point")
        if total != nnz or csr.range(col_at + 4 * nnz, val_at - col_at - 4 * nnz).any():
            wrong("row pointers end too early, or the bytes behind the columns are not zero")

    def load(self, record, check):
        """Steps 24 to 27 for a tensor that is no alias, and its values in its shape."""
        r = self.records[record]
        parts = [self.part(record, part, check) for part in range(4)]
        self.step_27_outliers(record)
        if r["kind"] == GROUPED:
            values = dequantize(r, int(self.rows[record]), int(self.columns[record]), parts)
        elif r["dtype"] == BF16:
            values = to_f32(parts[0], BF16)
        else:
            values = parts[0].view(DTYPE_NUMPY[r["dtype"]])
        return values.reshape(r["dims"][:int(r["rank"])].tolist())


class PartBytes:
    """Random access to the decoded bytes of a part; holds the chunk that was used last."""

    def __init__(self, shard, record, part):
        self.shard, self.record, self.part = shard, record, part
        self.size, self.held, self.bytes = int(shard.part_size[record, part]), None, None

    def chunk(self, i):
        if self.held != i:
            self.bytes, self.held = self.shard.chunk(self.record, self.part, i, False), i
        return self.bytes

    def range(self, start, size):
        out, done = np.empty(size, "u1"), 0
        while done < size:
            i, at = divmod(start + done, CHUNK_BYTES)
            piece = self.chunk(i)[at:at + size - done]
            out[done:done + len(piece)] = piece
            done += len(piece)
        return out

    def at(self, positions):
        """The bytes at positions, which do not decrease."""
        chunks, inside = np.divmod(positions, np.uint64(CHUNK_BYTES))
        cuts = np.flatnonzero(np.diff(chunks)) + 1
        pieces = [self.chunk(int(positions[at[0]]) // CHUNK_BYTES)[inside[at]]
                  for at in np.split(np.arange(len(positions)), cuts)]
        return np.concatenate(pieces)
