#!/usr/bin/env python3
"""Changes weights of a checkpoint of one F32 shard in place; standard library only.

  python3 tests/change_weights.py FILE.safetensors PATTERN EXPRESSION

Every weight of the matrices whose name has PATTERN becomes EXPRESSION, of its value w, its row i and its
column j, rounded to F32.
"""

import json
import struct
import sys

path, pattern, expression = sys.argv[1:]
with open(path, "rb") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    header = file.read(size)
    data = bytearray(file.read())
change = eval("lambda w, i, j: " + expression)
for name, tensor in json.loads(header).items():
    if pattern in name:
        rows, cols = tensor["shape"]
        at = tensor["data_offsets"][0]
        for i in range(rows):
            row = struct.unpack_from(f"<{cols}f", data, at)
            struct.pack_into(f"<{cols}f", data, at, *(change(w, i, j) for j, w in enumerate(row)))
            at += 4 * cols
with open(path, "wb") as file:
    file.write(struct.pack("<Q", size) + header + data)
