"""Random legal containers: the Python reader must take them and give back their values.

A writer of its own, from spec/container.md: tensors of every kind, dtype, width and rank, empty
ones, outliers, aliases, files, compression in any order of chunks, unknown sections and feature
bits.  Every container is read with and without digests; with --tool, ingot-verify must accept it,
too; with --program, a reader that is a program must accept it and print its values
(vectors_of_program.py says how).

    random_containers.py --reader FOLDER [--tool ingot-verify] [--program P] [--count N] [--seed N]
"""

import argparse
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile

import numpy as np
import xxhash
import zstandard

from test_values import pack_row, random_scale
from vectors_of_program import run

CHUNK = 1 << 20
DENSE, GROUPED, ALIAS, AUXILIARY = range(4)
NUMPY = ("<f4", "<f2", "<u2", "<i4", "u1")
NOT_COMPUTED = struct.pack("<Q", 0x7FF8000000000000)


def align(x, a):
    return -(-x // a) * a


def xxh64(raw):
    return xxhash.xxh3_64_intdigest(raw).to_bytes(8, "little")


def xxh128(raw):
    return xxhash.xxh3_128_intdigest(raw).to_bytes(16, "little")


class Tensor:
    """Fields of a record, bytes of its parts, and the values that a reader must give."""

    def __init__(self, kind, dims, dtype, values, parts, bits=0, scale_dtype=0, zero_mode=0,
                 group=0, outliers=0):
        self.kind, self.dims, self.dtype, self.values, self.parts = kind, dims, dtype, values, parts
        self.settings, self.outliers = (dtype, bits, scale_dtype, zero_mode, group), outliers


def dense(rng, kind):
    dims = [rng.choice([0, 1, 2, 3, 5, 17]) for _ in range(rng.randrange(1, 5))]
    if rng.random() < 0.1:
        dims = [rng.choice([300_000, 1_100_000])]
    dtype = 0 if kind == AUXILIARY else rng.randrange(5)
    raw = rng.randbytes(math.prod(dims) * np.dtype(NUMPY[dtype]).itemsize)
    values = np.frombuffer(raw, NUMPY[dtype])
    if dtype == 2:
        values = (values.astype("<u4") << 16).view("<f4")
    return Tensor(kind, dims, dtype, values.reshape(dims), [raw, b"", b"", b""])


def grouped(rng):
    bits, scale_dtype, zero_mode = rng.randrange(2, 9), rng.randrange(3), rng.randrange(2)
    dims = [rng.randrange(1, 4) for _ in range(rng.randrange(4))] + [rng.choice([1, 5, 8, 24, 130])]
    if rng.random() < 0.05:
        dims = [2, 30_000]
    k, n = dims[-1], math.prod(dims[:-1])
    group = rng.choice([k] + [g for g in (8, 16, 64) if g <= k])
    groups = -(-k // group)
    codes = [[rng.randrange(1 << bits) for _ in range(k)] for _ in range(n)]
    zeros = [[rng.randrange(1 << bits) if zero_mode else 1 << (bits - 1) for _ in range(groups)]
             for _ in range(n)]
    scales = [[random_scale(rng, scale_dtype) for _ in range(groups)] for _ in range(n)]
    places = sorted(rng.sample(range(n * k), min(n * k, rng.choice([0, 0, 1, 2, 5, n * k]))))
    dtype = rng.choice([0, 1]) if places else 1
    kept = np.array([rng.gauss(0, 3) for _ in places], NUMPY[dtype])
    for place in places:
        codes[place // k][place % k] = zeros[place // k][place % k // group]
    of_group = np.arange(k) // group
    # Exact in binary64: 9 bits times 24.
    values = np.array([[float(value) for _, value in row] for row in scales])[:, of_group]
    values = (values * (np.array(codes) - np.array(zeros)[:, of_group])).astype("<f4")
    values.ravel()[places] = kept
    part3 = b""
    if places:
        part3 = np.searchsorted(places, np.arange(n + 1) * k).astype("<u8").tobytes()
        part3 += (np.array(places) % k).astype("<u4").tobytes() + bytes(len(places) % 2 * 4)
        part3 += kept.tobytes()
    parts = [b"".join(pack_row(row, bits) for row in codes),
             b"".join(raw for row in scales for raw, _ in row),
             b"".join(map(bytes, zeros)) if zero_mode else b"", part3]
    return Tensor(GROUPED, dims, dtype, values.reshape(dims), parts, bits, scale_dtype, zero_mode,
                  group, len(places))


def random_tensors(rng):
    """(name, tensor) in load order."""
    tensors = []
    for i in range(rng.randrange(12)):
        kind = rng.choice([DENSE, DENSE, GROUPED, GROUPED, ALIAS, AUXILIARY])
        targets = [j for j, (_, t) in enumerate(tensors) if t.kind != ALIAS]
        if kind == ALIAS and targets:
            j = rng.choice(targets)
            t = Tensor(ALIAS, tensors[j][1].dims, 0, tensors[j][1].values, [b""] * 4, outliers=j)
            t.settings = tensors[j][1].settings
        else:
            t = grouped(rng) if kind == GROUPED else dense(rng, AUXILIARY * (kind == AUXILIARY))
        name = bytes([0x21 + i]) + bytes(rng.randrange(0x21, 0x7F)
                                         for _ in range(rng.choice([0, 4, 254])))
        tensors.append((name, t))
    return tensors


def random_files(rng):
    """(name, content) in their order."""
    return [(name, rng.randbytes(rng.choice([0, 5, 77])))
            for name in sorted(rng.sample([b"A.json", b"b_c-d", b"z"], rng.randrange(4)))]


def plan(rng, tensors, files, compress=zstandard.compress):
    """Sections (type, flags, bytes, aux), and whether their chunks are compressed."""
    records, image, chunks, name_at = [], bytearray(), [], 0
    for name, t in tensors:
        first, parts = len(chunks), []
        for raw in t.parts:
            if not raw:
                parts += [0, 0]
                continue
            image += bytes(align(len(image), 4096 if len(raw) >= 65536 else 256) - len(image))
            parts += [len(image), len(raw)]
            image += raw
            chunks += [raw[i:i + CHUNK] for i in range(0, len(raw), CHUNK)]
        records.append(struct.pack(
            "<IHBB4Q4BIQQ8Q32x", name_at, len(name), t.kind, len(t.dims),
            *t.dims + [0] * (4 - len(t.dims)), *t.settings, t.outliers, first, *parts))
        name_at += len(name)
    names = [name for name, _ in tensors]
    order = sorted(range(len(names)), key=lambda i: names[i])
    ledger = bytes(32) + NOT_COMPUTED * 5 + bytes(56)
    sections = [(b"TIDX", 1, b"".join(records), 0),
                (b"TSRT", 1, np.array(order, "<u4").tobytes(), 0),
                (b"NAME", 1, b"".join(names + [name for name, _ in files]), 0),
                (b"CHNK", 1, b"".join(map(xxh64, chunks)), 0),
                (b"LEDG", 1, ledger * len(names), 0), (b"META", 1, b"{}", 0)]
    for name, content in files:
        sections.append((b"FILE", 1, content, name_at | len(name) << 32))
        name_at += len(name)
    compressed, data = rng.random() < 0.4, bytes(image)
    if compressed:
        stored, data = [b""] * len(chunks), b""
        for i in rng.sample(range(len(chunks)), len(chunks)):
            raw, codec = chunks[i], 0
            frame = compress(raw)
            if rng.random() < 0.7 and len(frame) <= CHUNK:
                raw, codec = frame, 1
            stored[i] = struct.pack("<QII", len(data), len(raw), codec) + xxh64(raw)
            data += raw
        sections.append((b"ZMAP", 1, b"".join(stored), 0))
    for _ in range(rng.choice([0, 0, 1, 2])):
        unknown = (b"note", rng.choice([0, 2]), rng.randbytes(rng.randrange(20)),
                   rng.getrandbits(64))
        sections.insert(rng.randrange(len(sections) + 1), unknown)
    sections.append((b"DATA", 1, data, len(image)))
    return sections, compressed


def write_sections(rng, path, sections, compressed, profile=0, shard=0, shards=1, set_id=bytes(16),
                   tail=b""):
    """Minor version, ro_compat and compat bits are random: a reader of this version reads on.
    `tail` stands before the trailer.  Returns the root."""
    table, body, end = b"", bytearray(), 128 + 48 * len(sections)
    start = end
    for kind, flags, raw, aux in sections:
        offset = align(start + len(body), 4096 if kind == b"DATA" else 8)
        body += bytes(offset - start - len(body)) + raw
        table += struct.pack("<4sIQQQ", kind, flags, offset, len(raw), aux)
        table += bytes(16) if kind == b"DATA" else xxh128(raw)
    body += bytes(-(start + len(body) + len(tail)) % 8) + tail
    size, root = start + len(body) + 32, xxh128(table)
    superblock = struct.pack("<8sHHIQQQQQ4I16s16s16x", b"\x89IGT\r\n\x1a\n", 1, rng.choice([0, 7]),
                             128, size, compressed, rng.getrandbits(64), rng.getrandbits(64), 128,
                             len(sections), profile, shard, shards, set_id, root)
    with open(path, "wb") as f:
        f.write(superblock + xxh64(superblock) + table + body)
        f.write(root + struct.pack("<Q", size) + b"IGTEND\r\n")
    return root


def check(ingot_reader, path, tensors, files):
    for digests in (True, False):
        with ingot_reader.Container(path, digests) as container:
            if digests:
                container.verify()
            assert container.names() == [name.decode() for name, _ in tensors]
            for name, t in tensors:
                got = container.tensor(name.decode())
                assert got.dtype == t.values.dtype and got.shape == t.values.shape, name
                # Dense tensors may hold NaN; +0 and -0 of quantized ones are equal.
                assert got.tobytes() == t.values.tobytes() or (got == t.values).all(), name
            assert [(name.encode(), container.file(name)) for name in container.files()] == files


def check_program(program, path, tensors, files):
    _, code, lines = run(program, path, "--values")
    assert code == "OK", f"{program} says {code}"
    lines = [words for words in lines if words[0] in ("tensor", "file")]
    assert len(lines) == len(tensors) + len(files), f"{program}: number of tensors or files"
    for words, (name, content) in zip(lines, files):
        assert words[1:] == [name.decode(), str(len(content)), content.hex()], (program, name)
    for words, (name, t) in zip(lines[len(files):], tensors):
        assert words[1] == name.decode() and words[4] == "x".join(map(str, t.dims)), (program, name)
        # An alias has the values of its target and no kind of its own here.
        quantized, got = t.settings[1] > 0, bytes.fromhex(words[-1])
        want = t.values
        if not quantized and t.settings[0] == 2:
            want = (want.view("<u4") >> 16).astype("<u2")
        same = (np.frombuffer(got, "<f4") == want.ravel()).all() if quantized else (
            got == want.tobytes())
        assert same and len(got) == want.nbytes, f"{program}: values of {name}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reader", required=True)
    parser.add_argument("--tool")
    parser.add_argument("--program")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    sys.path.insert(0, options.reader)
    import ingot_reader

    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "random.ingot")
        for n in range(options.count):
            rng = random.Random(options.seed * 1000003 + n)
            tensors = random_tensors(rng)
            files = random_files(rng)
            write_sections(rng, path, *plan(rng, tensors, files), profile=rng.randrange(3),
                           set_id=rng.randbytes(16))
            try:
                check(ingot_reader, path, tensors, files)
            except Exception:
                print(f"container {n}: {[(name, vars(t)) for name, t in tensors]}"[:2000])
                raise
            if options.tool:
                run = subprocess.run([options.tool, path, "--json"], capture_output=True,
                                     timeout=120, check=False)
                error = json.loads(run.stdout)["error"]
                assert error is None, f"container {n}: {options.tool} says {error}"
            if options.program:
                check_program(options.program, path, tensors, files)
    print(f"{options.count} containers")


if __name__ == "__main__":
    main()
