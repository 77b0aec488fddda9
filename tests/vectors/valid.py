"""Valid containers: (name, [File, ...]) for every vector of spec/vectors/valid."""

import struct

from container import (AUXILIARY, BF16, CHUNK, DENSE, F16, F32, GROUPED, I32, U8, File, Tensor,
                       alias, dense, frame, grouped, pack_row, stream)

DTYPES = ("F32", "F16", "BF16", "I32", "U8")


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
    out += [(name, [File([dense("a", [2], F16, 162)], meta=meta)]) for name, _, meta in metas()]
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
    # What a frame may have: a window (here 15 x 2^28), dictionary 0, a checksum; or just a size.
    frames = File([dense(name, [40], U8, 195 + i) for i, name in enumerate("abcde")])
    frames.is_compressed = True
    frames.frames = {i: frame(t.parts[0], **kind) for i, (t, kind) in enumerate(zip(
        frames.tensors, [{}, {"window": 21 << 3 | 7}, {"dictionary": 0}, {"checksum": True}]))}
    out.append(("zstd-frames", [frames]))
    # Parts of 65,535 and 65,536 bytes: the second begins a page.
    raw = bytes(range(256)) * 256
    out.append(("alignment", [File([Tensor(name, DENSE, [size], U8, [raw[:size], b"", b"", b""],
                                           values=raw[:size])
                                    for name, size in [("a", 1), ("b", 65535), ("c", 65536),
                                                       ("d", 3)]])]))
    out.append(("names", [File([dense(name, [1], U8, 198) for name in
                                ["ab", "a", "!", "~", "a.b", "n" * 255, "A", "#fold"]],
                               [(name, name.encode()) for name in
                                ["-", "0", "A", "Z.z", "_", "a", "a.b", "ab", "f" * 255]])]))
    out.append(("set", shard_set(b"vector set", 200)))
    ledger = mixed()
    for i, t in enumerate(ledger.tensors):
        t.ledger = struct.pack("<4BIIIQQ5d16s40x", i % 6, i % 4, 255 - i, i % 2, i, 2 * i, 0, 4096,
                               t.outliers if t.kind == GROUPED else 0, 0.125, 0.25, 0.0, 1.5, 0.01,
                               stream(210 + i, 16))
    out.append(("ledger", [ledger]))
    return out


def metas():
    """(name, code, META): META alone is at issue, which container readers hand out as bytes; the code
    is that of section 9 for tools that look into it."""
    deep, deeper = (b"[" * n + b"]" * n for n in (63, 64))
    return [("meta-no-json", "E_META", b"no JSON"), ("meta-empty", "E_META", b""),
            ("meta-list", "E_META", b"[1]"), ("meta-nul", "E_META", b'{"a":"\\u0000"}'),
            ("meta-nul-byte", "E_META", b'{"a":1\0}'),
            ("meta-surrogate", "E_META", b'{"a":"\\ud800"}'),
            ("meta-key-twice", "E_META", b'{"a":1,"a":2}'),
            ("meta-deeper", "E_META", b'{"a":' + deeper + b"}"),
            ("meta-integer", "E_META", b'{"a":9223372036854775808}'),
            ("meta-overflow", "E_META", b'{"a":1e999}'),
            ("meta-limits", None, b' {"a":[-9223372036854775808,9223372036854775807,0.5],"":' +
             b'"\\u0001\\ud83d\\ude00","b":' + deep + b"}\n")]


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
