"""The worked example of spec/container.md: every byte of a small container with what it means.

    hexdump.py FILE.ingot                  prints it
    hexdump.py --check DOCUMENT FILE.ingot    says whether DOCUMENT has exactly this text
    hexdump.py --write DOCUMENT FILE.ingot    puts it there, between the two fences of its example

For files with one dense or grouped-affine tensor that are neither compressed nor sharded.
"""

import struct
import sys

FENCE = "```hexdump\n"
DTYPES = ("F32", "F16", "BF16", "I32", "U8")
KINDS = ("dense", "grouped-affine", "alias", "auxiliary")


class Dump:
    def __init__(self, raw):
        self.raw, self.at, self.lines = raw, 0, []

    def title(self, text):
        self.lines += ["", text] if self.lines else [text]

    def take(self, size, text):
        """The next bytes; text is a word, or a function of the bytes. Long runs of zeros are cut."""
        part = self.raw[self.at:self.at + size]
        assert len(part) == size, "the file ends early"
        words = text(part) if callable(text) else text
        if size > 16 and not any(part):
            self.lines.append(f"{self.at:08x}  {'00 ... 00':<47}  {size} bytes: {words}")
        else:
            for i in range(0, size, 16):
                row = part[i:i + 16].hex(" ").upper()
                self.lines.append(f"{self.at + i:08x}  {row:<47}  {'' if i else words}".rstrip())
        self.at += size
        return part

    def number(self, size, name):
        """An unsigned integer and its value."""
        part = self.take(size, lambda b: f"{name} {int.from_bytes(b, 'little')}")
        return int.from_bytes(part, "little")

    def zero_until(self, end, text):
        if end > self.at:
            assert not any(self.raw[self.at:end])
            self.take(end - self.at, text)


def number_of_digest(part):
    """As digests are printed: most significant digit first."""
    return part[::-1].hex()


def superblock(d):
    d.title("superblock (section 3)")
    d.take(8, "magic")
    d.number(2, "major version")
    d.number(2, "minor version")
    d.number(4, "superblock size")
    d.number(8, "file size")
    for mask in ("incompat", "ro_compat", "compat"):
        d.number(8, f"{mask} feature mask")
    d.number(8, "offset of the section table")
    sections = d.number(4, "sections:")
    d.number(4, "profile")
    d.number(4, "shard index")
    d.number(4, "shard count")
    d.take(16, "set id")
    d.take(16, "root")
    d.take(16, "reserved")
    d.take(8, "superblock digest")
    return sections


def section_record(d):
    kind = d.take(4, lambda b: f"type {b.decode()}").decode()
    d.number(4, "  flags")
    at, size = d.number(8, "  offset"), d.number(8, "  size")
    if kind == "FILE":
        aux = d.number(4, "  aux, low: name at") | d.number(4, "  aux, high: length") << 32
    else:
        aux = d.number(8, "  aux")
    d.take(16, "  digest" if kind != "DATA" else "  digest: none, CHNK covers it")
    return kind, at, size, aux


def tensor_record(d):
    """Offsets and sizes of the parts, and what is needed to read them."""
    d.number(4, "name at")
    t = {"name size": d.number(2, "length of the name"),
         "kind": d.take(1, lambda b: f"kind {b[0]}: {KINDS[b[0]]}")[0],
         "rank": d.number(1, "rank")}
    t["dims"] = [d.number(8, f"dimension {i}") for i in range(t["rank"])]
    d.take(32 - 8 * t["rank"], "no further dimensions")
    d.take(1, lambda b: f"dtype {b[0]}: {DTYPES[b[0]]}")
    t["bits"] = d.number(1, "bits")
    t["scale"] = d.take(1, lambda b: f"scale dtype {b[0]}: {DTYPES[b[0]]}")[0]
    d.number(1, "zero mode")
    t["group"] = d.number(4, "group length")
    d.number(8, "outliers:")
    d.number(8, "first chunk")
    names = ("codes" if t["bits"] else "data", "scales", "zero points", "outliers")
    t["parts"] = []
    for i, name in enumerate(names):
        at, size = d.number(8, f"part {i}, {name}: offset"), d.number(8, "  size")
        t["parts"].append((at, size))
    d.take(32, "reserved")
    return t


def ledger_record(d):
    for name in ("method", "fallback", "damping step", "folded"):
        d.number(1, name)
    d.number(4, "dead input columns:")
    d.number(4, "small scales:")
    d.take(4, "reserved")
    d.number(8, "tokens:")
    d.number(8, "outliers:")
    for name in ("weight error", "of plain rounding", "output error", "of plain rounding", "damping"):
        d.take(8, lambda b, name=name: f"{name}: {struct.unpack('<d', b)[0]}")
    d.take(16, "source digest: not known")
    d.take(40, "reserved")


def codes_of_row(t, row):
    bits = int.from_bytes(row, "little")
    return [bits >> k * t["bits"] & (1 << t["bits"]) - 1 for k in range(t["dims"][-1])]


def data(d, t, start, size):
    for number, (at, length) in enumerate(t["parts"]):
        if not length:
            continue
        d.zero_until(start + at, "gap")
        if number == 0 and t["bits"]:
            stride = (-(-t["dims"][-1] * t["bits"] // 8) + 15) // 16 * 16
            for _ in range(length // stride):
                d.take(stride, lambda b: f"codes {' '.join(map(str, codes_of_row(t, b)))}")
        elif number == 1 and DTYPES[t["scale"]] == "F16":
            for _ in range(length // 2):
                d.take(2, lambda b: f"scale {struct.unpack('<e', b)[0]:g}")
        elif number == 2:
            for _ in range(length):
                d.number(1, "zero point")
        else:
            d.take(length, ("data", "scales", "", "outliers")[number])
    assert d.at == start + size


def dump(raw):
    d = Dump(raw)
    count = superblock(d)
    d.title("section table (section 4)")
    table = [section_record(d) for _ in range(count)]
    t, files = None, []
    for kind, at, size, aux in table:
        if kind == "FILE":
            files.append(aux >> 32)
    for kind, at, size, aux in table:
        d.zero_until(at, "gap")
        assert d.at == at
        d.title(f"{kind}")
        if kind == "TIDX":
            assert size == 160
            t = tensor_record(d)
        elif kind == "TSRT":
            d.number(4, "record")
        elif kind == "NAME":
            for length, what in [(t["name size"], "tensor")] + [(n, "file") for n in files]:
                d.take(length, lambda b, what=what: f"name of the {what}: {b.decode()}")
        elif kind == "CHNK":
            for i in range(size // 8):
                d.take(8, lambda b, i=i: f"digest of chunk {i}: {number_of_digest(b)}")
        elif kind == "LEDG":
            ledger_record(d)
        elif kind in ("META", "FILE"):
            d.take(size, lambda b: b.decode().encode("unicode_escape").decode())
        else:
            data(d, t, at, size)
    d.zero_until(len(raw) - 32, "gap")
    d.title("trailer (section 3)")
    d.take(16, "root")
    d.number(8, "file size")
    d.take(8, "magic")
    assert d.at == len(raw)
    return "\n".join(d.lines) + "\n"


def main():
    with open(sys.argv[-1], "rb") as f:
        text = dump(f.read())
    if sys.argv[1] not in ("--check", "--write"):
        print(text, end="")
        return
    with open(sys.argv[2], encoding="utf-8") as f:
        document = f.read()
    before, there = document.split(FENCE)
    there, after = there.split("```\n", 1)
    if sys.argv[1] == "--write":
        with open(sys.argv[2], "w", encoding="utf-8") as f:
            f.write(before + FENCE + text + "```\n" + after)
    elif there != text:
        sys.exit(f"the example of {sys.argv[2]} is not what hexdump.py prints")


if __name__ == "__main__":
    main()
