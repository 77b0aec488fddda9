"""Do all readers report the same first error?  Damaged containers with repaired digests.

Takes valid containers, changes fields and bytes of them, repairs the digests above the change (so
that the checks behind the digests are reached), and compares the code of the Python reader with
that of `ingot-verify --json` and of readers that are programs (vectors_of_program.py says what they
print).  A difference means that spec/container.md is unclear or a reader wrong.  Any code of the
Python reader that is not one of the specification is a failure, too.

    differential.py --reader FOLDER [--tool ingot-verify] [--program P]...
                    [--program-without-zstd P]... [--count N] [--seed N] FILE...

Of a set, FILE is one of its shards; that one is damaged, and any shard of the set is named.
"""

import argparse
import bisect
import collections
import functools
import json
import math
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile

import xxhash

from vectors_of_program import run

CHUNK = 1 << 20
# Address space of the reader: libraries of numpy reserve much, damaged sizes ask for more.
MEMORY_BYTES = 4 << 30
# Of a program: what the files here need many times over.
PROGRAM_MEMORY_BYTES = 256 << 20
SECTION = struct.Struct("<4sIQQQ16s")
# Where fields are: (offset, size) in the superblock, a section record, a tensor record, a ledger
# record and a stored chunk.
SUPERBLOCK_FIELDS = [(0, 8), (8, 2), (10, 2), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8),
                     (56, 4), (60, 4), (64, 4), (68, 4), (72, 8), (88, 8), (104, 8), (112, 8),
                     (120, 8)]
SECTION_FIELDS = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 4), (28, 4), (24, 8), (32, 8)]
RECORD_FIELDS = [(0, 4), (4, 2), (6, 1), (7, 1), (8, 8), (16, 8), (24, 8), (32, 8), (40, 1),
                 (41, 1), (42, 1), (43, 1), (44, 4), (48, 8), (56, 8), (64, 8), (72, 8), (80, 8),
                 (88, 8), (96, 8), (104, 8), (112, 8), (120, 8), (128, 8), (152, 8)]
LEDGER_FIELDS = [(0, 1), (1, 1), (2, 1), (3, 1), (4, 4), (8, 4), (12, 4), (16, 8), (32, 8), (40, 8),
                 (48, 8), (56, 8), (64, 8), (72, 8), (88, 8), (120, 8)]
STORED_FIELDS = [(0, 8), (8, 4), (12, 4), (16, 8)]
# Codes of the steps that a basic reader leaves out.
DIGEST_CODES = ("E_SUPERBLOCK_DIGEST", "E_ROOT", "E_SECTION_DIGEST", "E_GAP", "E_STORED_DIGEST",
                "E_CHUNK_DIGEST")
# Some versions of zstd decode damaged frames that others refuse (container.md, erratum 11).
LENIENT = ({"E_COMPRESSION", "E_CHUNK_DIGEST"}, {"E_COMPRESSION", None})


# Codes of chunks; a reader without zstd says E_UNSUPPORTED when no other chunk breaks a rule.
CHUNK_CODES = ("E_STORED_DIGEST", "E_COMPRESSION", "E_CHUNK_DIGEST", "E_CODE_PADDING", "E_SCALE",
               "E_ZERO_POINT", "E_OUTLIER")


class Damaged:
    """A container in memory that can be changed and made consistent again."""

    def __init__(self, path, rng):
        with open(path, "rb") as f:
            self.raw = bytearray(f.read())
        self.undamaged = bytes(self.raw)
        self.rng = rng
        self.count = struct.unpack_from("<I", self.raw, 56)[0]
        # Of the file before any damage.
        self.sections = [SECTION.unpack_from(self.raw, 128 + 48 * i) for i in range(self.count)]
        self.where = {s[0].decode(): (s[2], s[3]) for s in self.sections}
        self.data_end = self.where["DATA"][0] + self.where["DATA"][1]
        self.parts = self.list_parts()
        self.chunks = self.list_chunks()

    def list_parts(self):
        """(offset in the image, size) of all parts, in order."""
        start, size = self.where["TIDX"]
        parts = []
        for record in range(start, start + size, 160):
            fields = struct.unpack_from("<8Q", self.raw, record + 64)
            parts += [p for p in zip(fields[::2], fields[1::2]) if p[1]]
        return parts

    def list_chunks(self):
        """(offset in the file, stored size, compressed) of all chunks."""
        data = self.where["DATA"][0]
        if "ZMAP" in self.where:
            start, size = self.where["ZMAP"]
            entries = [struct.unpack_from("<QII", self.raw, at)
                       for at in range(start, start + size, 24)]
            return [(data + at, length, codec) for at, length, codec in entries]
        return [(data + at + i, min(CHUNK, size - i), 0)
                for at, size in self.parts for i in range(0, size, CHUNK)]

    # -- damage

    def change_field(self, at, size):
        if at + size > len(self.raw):
            return
        value = int.from_bytes(self.raw[at:at + size], "little")
        top = (1 << 8 * size) - 1
        other = self.rng.choice([0, 1, 2, 3, 4, 7, 8, 16, 255, 4096, CHUNK, top, top >> 1,
                                 top // 2 + 1, 1 << 47, 1 << 48, 1 << 63, value + 1, value - 1,
                                 value + 8, value - 8, value * 2, value // 2, value + 4096,
                                 value ^ (1 << self.rng.randrange(8 * size)), len(self.raw),
                                 0x7FF8000000000000, self.rng.getrandbits(8 * size)]) & top
        self.raw[at:at + size] = other.to_bytes(size, "little")

    def change_byte(self, start, size):
        size = min(size, len(self.raw) - start)
        if size > 0:
            self.raw[start + self.rng.randrange(size)] ^= 1 << self.rng.randrange(8)

    def change_outlier(self):
        """Flips a bit of the code under an outlier, or moves its column."""
        old = self.undamaged
        start, size = self.where["TIDX"]
        tensors = [at for at in range(start, start + size, 160)
                   if old[at + 6] == 1 and any(old[at + 48:at + 56])]
        if not tensors or len(self.raw) < len(old):
            return
        at = self.rng.choice(tensors)
        dims = [d for d in struct.unpack_from("<4Q", old, at + 8) if d]
        rows, columns, bits = math.prod(dims[:-1]), dims[-1], old[at + 41]
        codes, outliers = (self.where["DATA"][0] + struct.unpack_from("<Q", old, at + i)[0]
                           for i in (64, 112))
        i = self.rng.randrange(struct.unpack_from("<Q", old, at + 48)[0])
        row_ptr = struct.unpack_from(f"<{rows + 1}Q", old, outliers)
        column_at = outliers + 8 * (rows + 1) + 4 * i
        if self.rng.random() < 0.5:
            self.change_field(column_at, 4)
            return
        row = bisect.bisect_right(row_ptr, i) - 1
        bit = struct.unpack_from("<I", old, column_at)[0] * bits + self.rng.randrange(bits)
        stride = (-(-columns * bits // 8) + 15) // 16 * 16
        self.raw[codes + row * stride + bit // 8] ^= 1 << bit % 8

    def change(self):
        rng = self.rng
        kind = rng.choice(["superblock", "section", "swap", "TIDX", "TIDX", "TIDX", "LEDG", "ZMAP",
                           "NAME", "TSRT", "SHRD", "CHNK", "META", "gap", "data", "data", "part",
                           "part", "part", "outlier", "outlier", "image gap", "trailer", "cut"])
        fields = {"TIDX": (RECORD_FIELDS, 160), "LEDG": (LEDGER_FIELDS, 128),
                  "ZMAP": (STORED_FIELDS, 24), "TSRT": ([(0, 4)], 4), "CHNK": ([(0, 8)], 8),
                  "SHRD": ([(0, 8), (8, 8)], 16)}
        if kind == "superblock":
            self.change_field(*rng.choice(SUPERBLOCK_FIELDS))
        elif kind == "section":
            at, size = rng.choice(SECTION_FIELDS)
            self.change_field(128 + 48 * rng.randrange(self.count) + at, size)
        elif kind == "swap":
            a, b = (128 + 48 * rng.randrange(self.count) for _ in range(2))
            if max(a, b) + 48 <= len(self.raw):
                self.raw[a:a + 48], self.raw[b:b + 48] = self.raw[b:b + 48], self.raw[a:a + 48]
        elif kind in fields:
            start, size = self.where.get(kind, (0, 0))
            table, step = fields[kind]
            if size:
                at, width = rng.choice(table)
                self.change_field(start + step * rng.randrange(size // step) + at, width)
        elif kind in ("NAME", "META"):
            self.change_byte(*self.where[kind])
        elif kind == "gap":
            s = rng.choice(self.sections)
            self.change_byte(max(128, s[2] - 8), 8)
        elif kind == "data" and self.chunks:
            start, size, _ = rng.choice(self.chunks)
            self.change_byte(start, size)
        elif kind in ("part", "image gap") and "ZMAP" not in self.where and self.parts:
            offset, size = rng.choice(self.parts)
            start = self.where["DATA"][0] + offset
            if kind == "part":
                at = rng.choice([0, size - 1, rng.randrange(size)])
                width = min(rng.choice([1, 2, 4, 8]), size)
                self.change_field(start + min(at // width * width, size - width), width)
            else:
                self.change_byte(max(self.where["DATA"][0], start - 16), 16)
        elif kind == "outlier" and "ZMAP" not in self.where:
            self.change_outlier()
        elif kind == "trailer":
            self.change_byte(self.data_end, len(self.raw) - self.data_end)
        elif kind == "cut":
            size = rng.choice([0, 7, 8, 127, 128, 159, 160, 161, len(self.raw) - 1,
                               rng.randrange(len(self.raw) + 1)])
            self.raw = self.raw[:size] if rng.random() < 0.9 else self.raw + bytes(size)
        return kind

    # -- repair, from the inside out; what no longer lies in the file is left alone

    def put(self, at, digest, size):
        if at + size <= len(self.raw):
            self.raw[at:at + size] = digest.to_bytes(size, "little")

    def repair(self, chunks, sections, root, superblock):
        if chunks and "ZMAP" in self.where:
            for i, (at, size, _) in enumerate(self.chunks):
                self.put(self.where["ZMAP"][0] + 24 * i + 16,
                         xxhash.xxh3_64_intdigest(self.raw[at:at + size]), 8)
        if chunks:
            for i, (at, size, codec) in enumerate(self.chunks):
                if not codec:
                    self.put(self.where["CHNK"][0] + 8 * i,
                             xxhash.xxh3_64_intdigest(self.raw[at:at + size]), 8)
        if len(self.raw) < 160:
            return
        count = min(struct.unpack_from("<I", self.raw, 56)[0], 64)
        end = min(128 + 48 * count, len(self.raw) - 32)
        if sections:
            for at in range(128, end - 47, 48):
                kind, _, offset, size, _, _ = SECTION.unpack_from(self.raw, at)
                if kind != b"DATA" and offset + size <= len(self.raw):
                    self.put(at + 32, xxhash.xxh3_128_intdigest(self.raw[offset:offset + size]), 16)
        if root:
            digest = xxhash.xxh3_128_intdigest(self.raw[128:end])
            self.put(88, digest, 16)
            self.put(len(self.raw) - 32, digest, 16)
        if superblock:
            self.put(120, xxhash.xxh3_64_intdigest(self.raw[:120]), 8)


def code_of_tool(tool, path):
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    run = subprocess.run([tool, path, "--json"], stdin=subprocess.DEVNULL, capture_output=True,
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (hard, hard)),
                         timeout=120, check=False)
    try:
        return json.loads(run.stdout)["error"]
    except ValueError:
        return f"no answer, exit code {run.returncode}: {run.stderr.decode()[-300:]}"


def code_of_reader(ingot_reader, path, digests):
    try:
        with ingot_reader.Container(path, digests) as container:
            container.verify()
    except ingot_reader.IngotError as error:
        return error.code
    return None


@functools.cache
def is_sanitized(program):
    """AddressSanitizer reserves more address space than it uses."""
    with open(program, "rb") as f:
        return b"__asan_init" in f.read()


def code_of_program(program, path):
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = (hard if is_sanitized(program) else PROGRAM_MEMORY_BYTES, hard)
    status, code, _ = run(program, path,
                          limits=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    if (status == 0) != (code == "OK") or status not in (0, 1, 2):
        return f"{code} with exit code {status}"
    return None if code == "OK" else code


def may_lack_zstd(ours, theirs):
    """Of a compressed file: what a reader without zstd may say instead of `ours`."""
    if ours in (None, "E_OUTLIER"):
        return theirs == "E_UNSUPPORTED"
    return ours in CHUNK_CODES[1:] and theirs in ("E_UNSUPPORTED", *CHUNK_CODES[:-1])


def other_answers(options, named, ours, of_tool, compressed):
    """Who says what that contradicts the Python reader."""
    # The tool parses META between open and full; readers of the container never do.
    answers = {} if of_tool == "E_META" else {options.tool: of_tool}
    for program in options.program + options.program_without_zstd:
        answers[program] = code_of_program(program, named)
        lacks_zstd = program in options.program_without_zstd and compressed
        if lacks_zstd and may_lack_zstd(ours, answers[program]):
            del answers[program]
    return {who: code for who, code in answers.items()
            if code != ours and {ours, code} not in LENIENT}


def add_options(parser):
    parser.add_argument("--reader", required=True)
    parser.add_argument("--tool", default="ingot-verify")
    parser.add_argument("--program", action="append", default=[])
    parser.add_argument("--program-without-zstd", action="append", default=[])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--keep", help="folder for files on which the readers differ")


def copy_set(path, folder):
    """Copies a file and its siblings; returns their paths there."""
    here, name = os.path.split(path)
    stem = re.sub(r"-\d{5}-of-\d{5}\.[^.]*$", "-", name)
    names = [n for n in os.listdir(here or ".")
             if n == name or (stem != name and n.startswith(stem))]
    return [shutil.copy(os.path.join(here, n), folder) for n in sorted(names)]


def main():
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    sys.path.insert(0, options.reader)
    import ingot_reader
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))

    print(f"seed {options.seed}")
    seen, different = collections.Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        sets = {path: copy_set(path, folder) for path in options.files}
        for n in range(options.count):
            rng = random.Random(options.seed * 1000003 + n)
            source = rng.choice(options.files)
            damaged = Damaged(source, rng)
            kinds = [damaged.change() for _ in range(rng.choice([1, 1, 1, 1, 2, 3]))]
            # Each outer digest is repaired more often than the ones inside.
            inner = rng.random()
            damaged.repair(inner < 0.7, inner < 0.85, inner < 0.92, inner < 0.96)
            target = os.path.join(folder, os.path.basename(source))
            with open(target, "wb") as f:
                f.write(damaged.raw)
            named = rng.choice(sets[source])
            ours = code_of_reader(ingot_reader, named, True)
            theirs = code_of_tool(options.tool, named)
            basic = code_of_reader(ingot_reader, named, False)
            seen[ours] += 1
            # What needs no digest, a basic reader finds as well; else it may find anything later.
            if ours not in DIGEST_CODES and basic != (ours or "E_UNSUPPORTED"):
                theirs = f"basic reader: {basic}"
            answers = other_answers(options, named, ours, theirs, "ZMAP" in damaged.where)
            if answers:
                different += 1
                print(f"{n}: {source}, named {os.path.basename(named)}: "
                      f"{'+'.join(kinds)}: reader {ours}, others {answers}")
                if options.keep:
                    kept = f"{n}-{os.path.basename(target)}"
                    shutil.copy(target, os.path.join(options.keep, kept))
            shutil.copy(source, folder)
    print(f"{options.count} damaged files, {different} differences; "
          + ", ".join(f"{code} {count}" for code, count in sorted(seen.items(), key=str)))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
