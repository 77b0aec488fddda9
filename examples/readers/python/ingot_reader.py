"""A reader of Ingot containers in Python, written from spec/container.md and spec/quantization.md.

What it is: the three reader classes of container.md, section 14.  Steps are numbered as in section
12, and a broken rule raises IngotError with the code that the specification gives it.
What it is not: fast, or a runtime.  It is a second opinion on what the specification means, and a
way to get weights into numpy.

    with ingot_reader.Container("model.ingot") as c:
        c.verify()                                          # every byte
        weights = c.tensor("model.embed_tokens.weight")     # a numpy array, dequantized
"""

import os
import re
import sys

import numpy as np

from ingot_shard import (ALIAS, AUXILIARY, GROUPED, KINDS, MAX_TENSORS, IngotError, Shard, number,
                         xxh3_128, xxhash)
from ingot_values import DTYPES

# Failures of the system, not of the container.
SYSTEM_CODES = ("E_IO", "E_NOT_FOUND", "E_NO_MEMORY", "E_UNSUPPORTED")


class Container:
    """A file, or the set of shards that it belongs to, after all steps of open.

    digests: check them (a verifying reader) or not (a basic reader); by default as the package
    xxhash is there or not.  All failures are IngotError.
    """

    def __init__(self, path, digests=None):
        self.digests = xxhash is not None if digests is None else digests
        if self.digests and xxhash is None:
            raise IngotError("E_UNSUPPORTED", "digests need the package xxhash", path)
        named = Shard(os.fsdecode(path), self.digests)
        self.shards = [named]
        if named.count > 1:
            self.shards = self._step_23_set(named)
        self._index = {name: (s, i) for s, shard in enumerate(self.shards)
                       for i, name in enumerate(shard.names)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for shard in self.shards:
            shard.close()

    def _step_23_set(self, named):
        folder, name = os.path.split(named.path)
        n = named.count
        # EXT begins at the last dot; a name without a dot has none.
        pattern = r"(.*)-([0-9]{5})-of-([0-9]{5})" + (r"(\.[^.]*)" if "." in name else "()")
        match = re.fullmatch(pattern, name, re.DOTALL)
        if not match or int(match[3]) != n or not 1 <= int(match[2]) <= n:
            named.fail("E_SHARD_MISSING", f"is one of {n} shards, but not named as one of them")
        shards, tensors = [], 0
        for i in range(n):
            sibling = f"{match[1]}-{i + 1:05}-of-{n:05}{match[4]}"
            path = os.path.join(folder, sibling)
            try:
                shard = named if sibling == name else Shard(path, self.digests)
            except IngotError as error:
                if error.code != "E_NOT_FOUND":
                    raise
                raise IngotError("E_SHARD_MISSING", f"shard {i + 1} of {n} is missing",
                                 path) from error
            shards.append(shard)
            first = shards[0]
            if i == 0:
                meta = shard.table(b"META", "u1")
            if (shard.index, shard.count, shard.profile, shard.set_id) != (
                    i, n, first.profile, first.set_id):
                shard.fail("E_SHARD", f"is not shard {i + 1} of {n} of this set")
            if i == 0:
                roots = shard.table(b"SHRD", "u1").tobytes()
            elif shard.root != roots[16 * (i - 1):16 * i]:
                shard.fail("E_SHARD", "is not the file that the first shard names")
            if not np.array_equal(shard.table(b"META", "u1"), meta):
                shard.fail("E_SHARD", "has another META than the first shard")
            shard.close()
            # Beyond the limit nothing more is kept; a missing sibling is the earlier rule.
            tensors += shard.tensors
            if tensors > MAX_TENSORS:
                shards[1:] = []
        if tensors > MAX_TENSORS:
            named.fail("E_SHARD", "the set has too many tensors")
        if len(set().union(*(shard.names for shard in shards))) != tensors:
            named.fail("E_SHARD", "a tensor name occurs in two shards")
        return shards

    def _use(self, s):
        """Shard s; of a set only one file is open at a time."""
        for other in self.shards if self.shards[s].handle is None else ():
            other.close()
        return self.shards[s]

    # -- what is in it

    def names(self):
        """Names of all tensors, auxiliary ones and aliases included, in load order."""
        return [name.decode() for shard in self.shards for name in shard.names]

    def model_names(self):
        """Names of the model's tensors: neither auxiliary nor an alias of an auxiliary tensor."""
        names = []
        for shard in self.shards:
            target = np.where(shard.records["kind"] == ALIAS, shard.records["outliers"],
                              np.arange(shard.tensors, dtype="u8")).astype("i8")
            mine = shard.records["kind"][target] != AUXILIARY
            names += [name.decode() for name, is_mine in zip(shard.names, mine) if is_mine]
        return names

    def _find(self, name):
        try:
            return self._index[name.encode()]
        except KeyError:
            raise IngotError("E_NOT_FOUND", "there is no such tensor", self.shards[0].path,
                             name) from None

    def info(self, name):
        """What the record says, as dictionary; nothing is loaded."""
        s, i = self._find(name)
        shard, r = self.shards[s], self.shards[s].records[i]
        info = {"kind": KINDS[r["kind"]], "shape": r["dims"][:int(r["rank"])].tolist(),
                "dtype": DTYPES[r["dtype"]], "bytes": sum(shard.part_size[i].tolist())}
        if r["kind"] == GROUPED:
            info.update(bits=int(r["bits"]), group=int(r["group"]), zero_mode=int(r["zero_mode"]),
                        scale_dtype=DTYPES[r["scale_dtype"]], outliers=int(r["outliers"]))
        if r["kind"] == ALIAS:
            info["alias_of"] = shard.names[int(r["outliers"])].decode()
        return info

    def tensor(self, name, check=True):
        """Values: binary32 of quantized, F32 and BF16 tensors, else the dtype of the tensor.

        check: False skips steps 24 to 26, but never the rules of outliers."""
        s, i = self._find(name)
        shard = self._use(s)
        if shard.records[i]["kind"] == ALIAS:
            i = int(shard.records[i]["outliers"])
        try:
            return shard.load(i, check)
        except MemoryError as error:
            raise IngotError("E_NO_MEMORY", "no memory for the tensor", shard.path, name) from error

    def meta(self):
        """META as bytes: JSON of unknown origin."""
        return self._use(0).table(b"META", "u1").tobytes()

    def files(self):
        """Names of the verbatim files."""
        return [f.name.decode() for f in self.shards[0].files]

    def file(self, name):
        """A verbatim file as bytes."""
        for f in self.shards[0].files:
            if f.name == name.encode():
                return self._use(0).read(f.offset, f.size).tobytes()
        raise IngotError("E_NOT_FOUND", f"there is no file '{name}'", self.shards[0].path)

    def content_id(self):
        """XXH3-128 of what the set holds, whatever its compression or sharding (section 11)."""

        def pieces():
            base = 0
            for shard in self.shards:
                r = shard.records.copy()
                r["name_offset"], r["first_chunk"], r["parts"]["offset"] = 0, 0, 0
                r["outliers"][r["kind"] == ALIAS] += np.uint64(base)
                base += shard.tensors
                yield r.view("u1")
            for shard in self.shards:
                yield b"".join(shard.names)
            for s, shard in enumerate(self.shards):
                chunks = shard.by_type[b"CHNK"]
                yield from self._use(s).pieces(chunks.offset, chunks.size)

        if xxhash is None:
            raise IngotError("E_UNSUPPORTED", "the content id needs the package xxhash")
        return f"{xxh3_128(pieces()):032x}"

    def verify(self):
        """The steps of full.  What cannot be checked here is E_UNSUPPORTED, after all else."""
        unsupported = None
        if not self.digests:
            unsupported = IngotError("E_UNSUPPORTED", "no digest was checked (steps 3, 10, 14, 15,"
                                     " 24, 25): needs the package xxhash", self.shards[0].path)

        def attempt(step, *arguments):
            nonlocal unsupported
            try:
                step(*arguments)
            except IngotError as error:
                if error.code != "E_UNSUPPORTED":
                    raise
                unsupported = unsupported or error

        for s, shard in enumerate(self.shards):
            data = self._use(s).by_type[b"DATA"].offset
            for record, part in np.argwhere(shard.part_size).tolist():
                gap = int(shard.gap_before[record, part])
                start = data + int(shard.part_offset[record, part])
                if not shard.compressed and shard.read(start - gap, gap).any():
                    shard.fail("E_DATA_GAP", "bytes before the tensor are not zero", record)
                for i in range(shard.chunk_count(record, part)):
                    attempt(shard.chunk, record, part, i)
        for s, shard in enumerate(self.shards):
            self._use(s)
            for record in np.flatnonzero(shard.part_size[:, 3]).tolist():
                attempt(shard.step_27_outliers, record)
        if unsupported:
            raise unsupported



# ---- command line ---------------------------------------------------------------------------


def print_info(container):
    first = container.shards[0]
    print(f"format {first.major}.{first.minor}, profile {first.profile}, {len(container.shards)} "
          f"file(s), {'compressed, ' if first.compressed else ''}"
          f"{'digests checked' if container.digests else 'NO DIGEST CHECKED (package xxhash)'}")
    print(f"root {number(first.root):032x}")
    if xxhash:
        print(f"content id {container.content_id()}")
    for name in container.files():
        print(f"file    {name}")
    for name in container.names():
        info = container.info(name)
        kind, shape = info.pop("kind"), "x".join(map(str, info.pop("shape")))
        rest = "  ".join(f"{key}={value}" for key, value in info.items())
        print(f"{kind:<10}{name}  {shape}  {rest}")


def main():
    import argparse
    parser = argparse.ArgumentParser(description="Reads an Ingot container; exit code 0: done or "
                                     "valid, 1: the container breaks a rule, 2: could not run.")
    parser.add_argument("--no-digests", action="store_true", help="read as a basic reader")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("info", "what it holds"), ("verify", "check every byte"),
                       ("tensor", "write a tensor, dequantized, as .npy"),
                       ("file", "write a verbatim file")):
        command = commands.add_parser(name, help=text)
        command.add_argument("path")
        if name in ("tensor", "file"):
            command.add_argument("name")
            command.add_argument("output")
    options = parser.parse_args()
    try:
        with Container(options.path, False if options.no_digests else None) as container:
            if options.command == "info":
                print_info(container)
            elif options.command == "verify":
                container.verify()
                print(f"{options.path}: valid, every byte is accounted for")
            elif options.command == "tensor":
                values = container.tensor(options.name)
                with open(options.output, "wb") as out:
                    np.lib.format.write_array(out, values, allow_pickle=False)
            else:
                data = container.file(options.name)
                with open(options.output, "wb") as out:
                    out.write(data)
    except IngotError as error:
        print(f"ingot_reader: {error}", file=sys.stderr)
        return 2 if error.code in SYSTEM_CODES else 1
    except OSError as error:
        print(f"ingot_reader: {error} (E_IO)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
