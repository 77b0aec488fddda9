"""Do all readers report the same first error?  Random containers laid out from a broken plan.

differential.py changes bytes of a file; most changes of a size or an order then break the layout
before the rule that is meant.  Here tables and sections are changed first and the file is laid out
after that, with offsets and digests that fit, so that the rules behind the layout are reached.
A third of the files are sets of two shards.

    broken_containers.py --reader FOLDER [--tool ingot-verify] [--program P]...
                         [--program-without-zstd P]... [--count N] [--seed N]
"""

import argparse
import collections
import os
import random
import shutil
import struct
import sys
import tempfile

import zstandard

from differential import (LEDGER_FIELDS, RECORD_FIELDS, STORED_FIELDS, add_options, code_of_reader,
                          code_of_tool, other_answers)
from random_containers import plan, random_files, random_tensors, write_sections

STEPS = {b"TIDX": 160, b"TSRT": 4, b"CHNK": 8, b"LEDG": 128, b"SHRD": 16, b"ZMAP": 24}
NAMES = [bytes([c]) for c in b" .Az~/"]


def change_field(rng, kind, raw):
    """One field of one record of a table, mostly to something near what it was."""
    table = {b"TIDX": RECORD_FIELDS, b"LEDG": LEDGER_FIELDS, b"ZMAP": STORED_FIELDS}[kind]
    at, size = rng.choice(table)
    at += STEPS[kind] * rng.randrange(len(raw) // STEPS[kind])
    old = int.from_bytes(raw[at:at + size], "little")
    top = (1 << 8 * size) - 1
    new = rng.choice([0, 1, 2, 3, 4, 5, 6, 9, old + 1, old - 1, old + 8, old + 256, old * 2, top,
                      old | 1 << (8 * size - 1), 0x7FF0000000000000, 0x7FF8000000000001]) & top
    return raw[:at] + new.to_bytes(size, "little") + raw[at + size:]


def change_section(rng, sections):
    i = rng.randrange(len(sections))
    kind, flags, raw, aux = sections[i]
    step = rng.choice([STEPS.get(kind, 1), STEPS.get(kind, 1), 1, 4])
    what = rng.choice(["grow", "shrink", "grow", "shrink", "aux", "flags", "type", "repeat step"])
    if what == "grow":
        raw += rng.choice([bytes(step), raw[:step]])
        aux += len(raw) - len(sections[i][2]) if kind == b"DATA" and rng.random() < 0.7 else 0
    elif what == "shrink":
        raw = raw[:max(0, len(raw) - step)]
        aux -= len(sections[i][2]) - len(raw) if kind == b"DATA" and rng.random() < 0.7 else 0
    elif what == "aux":
        aux = rng.choice([0, 1, 1 << 48, (1 << 48) + 1, aux + 1, max(aux - 1, 0), aux ^ 1 << 32])
    elif what == "flags":
        flags = rng.choice([0, 1, 2, 3, flags ^ 1 << 31])
    elif what == "type":
        kind = rng.choice([b"note", b"\xff\xfe\x80\0", b"FILE", b"META", b"SHRD", b"ZMAP", b"tidx"])
    else:
        raw = raw[:step] + raw[:step] + raw[2 * step:]
    sections[i] = kind, flags, raw, aux
    return f"{sections[i][0].decode('latin1')} {what}"


def change_order(rng, sections):
    i, j = rng.randrange(len(sections)), rng.randrange(len(sections))
    what = rng.choice(["drop", "move", "repeat", "add", "swap content"])
    if what == "drop":
        del sections[i]
    elif what == "move":
        sections.insert(j, sections.pop(i))
    elif what == "repeat":
        sections.insert(j, sections[i])
    elif what == "add":
        kind = rng.choice([b"note", b"FILE", b"SHRD", b"ZMAP", b"\xff\xff\xff\xff"])
        sections.insert(rng.choice([j, len(sections)]),
                        (kind, rng.choice([0, 1, 2]), rng.choice([b"", bytes(16)]), 0))
    else:
        a, b = sections[i], sections[j]
        sections[i], sections[j] = (a[0], a[1], b[2], b[3]), (b[0], b[1], a[2], a[3])
    return what


def change_table(rng, sections):
    """A field of a table, or a name with its length kept."""
    i = rng.randrange(len(sections))
    kind, flags, raw, aux = sections[i]
    if len(raw) >= STEPS.get(kind, 1) and kind in (b"TIDX", b"LEDG", b"ZMAP"):
        raw = change_field(rng, kind, raw)
    elif raw and kind in (b"NAME", b"TSRT", b"SHRD", b"META"):
        at = rng.choice([rng.randrange(len(raw)), len(raw) - 1])
        raw = raw[:at] + rng.choice(NAMES + [raw[:1], b"\0"]) + raw[at + 1:]
    sections[i] = kind, flags, raw, aux
    return f"field of {kind.decode('latin1')}"


def change_value(rng, tensors):
    """Bytes of a part, near limits of scales, zero points, columns and row pointers."""
    parts = [(t, i) for _, t in tensors for i, raw in enumerate(t.parts) if raw]
    if not parts:
        return "nothing"
    t, i = rng.choice(parts)
    raw, size = t.parts[i], rng.choice([1, 2, 4, 8])
    at = rng.choice([0, len(raw) - size, rng.randrange(len(raw))]) // size * size
    new = rng.choice([1, 255, 0x7801, 0x7C00, 0x0D7F, 0x7181, 0x0D7FFFFF, 0x71800001, 0x7F800000,
                      1 << 63]).to_bytes(8, "little")[:size]
    t.parts[i] = (raw[:max(at, 0)] + new + raw[max(at, 0) + size:])[:len(raw)]
    return f"value of part {i}"


def odd_frame(rng):
    """A compressor whose frames are not quite what container.md, section 10, asks for."""
    skippable = struct.pack("<II", 0x184D2A50, 1) + b"x"
    plain = zstandard.compress
    return rng.choice([
        zstandard.ZstdCompressor(write_content_size=False).compress,
        zstandard.ZstdCompressor(write_checksum=True).compress,
        lambda raw: skippable + plain(raw), lambda raw: plain(raw) + skippable,
        lambda raw: plain(raw) + b"\0", lambda raw: plain(raw)[:-1], lambda raw: plain(raw[:-1]),
        lambda raw: plain(raw) + plain(b""), lambda raw: plain(raw[:1]) + plain(raw[1:]), bytes])


def change(rng, sections, head):
    what = rng.choice(["section", "section", "order", "table", "table", "head"])
    if what == "head":
        key, values = rng.choice([
            ("profile", [0, 1, 2, 3]), ("shard", [0, 1, 2]), ("shards", [0, 1, 2, 3, 9999, 10000]),
            ("set_id", [bytes(15) + b"\1"]),
            ("tail", [bytes(8), b"\0\1", bytes(7) + b"\1", bytes(9)])])
        head[key] = rng.choice(values)
        return key
    if not sections:
        return "nothing"
    return {"section": change_section, "order": change_order, "table": change_table}[what](
        rng, sections)


def write_broken(rng, folder):
    """A container of one or two files: the one to name, what was changed, how many, ZMAP or not."""
    count = rng.choice([1, 1, 2])
    broken, root, changes, any_compressed = rng.randrange(count), b"", [], False
    for shard in reversed(range(count)):
        tensors, files = random_tensors(rng), random_files(rng) if not shard else []
        compress, what = zstandard.compress, rng.choice(["value", "frame", "plan", "plan", "plan"])
        if shard == broken and what == "value":
            changes = [change_value(rng, tensors)]
        elif shard == broken and what == "frame":
            compress, changes = odd_frame(rng), ["frame"]
        sections, compressed = plan(rng, tensors, files, compress)
        any_compressed = any_compressed or compressed
        if shard:  # Other names than those of the first shard, where they are short enough.
            sections = [(k, f, bytes(min(c + 16, 126) for c in raw) if k == b"NAME" else raw, a)
                        for k, f, raw, a in sections]
        if count == 2 and not shard:
            place = 1 + max(i for i, s in enumerate(sections) if s[0] in (b"META", b"FILE"))
            sections.insert(place, (b"SHRD", 1, root, 0))
        head = {"shard": shard, "shards": count}
        if shard == broken and what == "plan":
            changes = [change(rng, sections, head) for _ in range(rng.choice([1, 1, 1, 2]))]
        name = f"set-{shard + 1:05}-of-{count:05}.ingot"
        root = write_sections(rng, os.path.join(folder, name), sections, compressed, **head)
    named = f"set-{rng.randrange(count) + 1:05}-of-{count:05}.ingot"
    return os.path.join(folder, named), "+".join(changes), count, any_compressed


def main():
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args()
    sys.path.insert(0, options.reader)
    import ingot_reader

    print(f"seed {options.seed}")
    seen, different = collections.Counter(), 0
    for n in range(options.count):
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(options.seed * 1000003 + n)
            named, changes, count, compressed = write_broken(rng, folder)
            ours = code_of_reader(ingot_reader, named, True)
            seen[ours] += 1
            theirs = code_of_tool(options.tool, named)
            answers = other_answers(options, named, ours, theirs, compressed)
            if answers:
                different += 1
                print(f"{n}: {count} shards, {changes}: reader {ours}, others {answers}")
                if options.keep:
                    shutil.copytree(folder, os.path.join(options.keep, str(n)))
    print(f"{options.count} broken containers, {different} differences; "
          + ", ".join(f"{code} {number}" for code, number in sorted(seen.items(), key=str)))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
