"""Raises the number of the arithmetic in META of a state or a container of one file, digests included:

    python3 tests/change_arithmetic.py FILE BY
"""
import re, struct, sys
import xxhash

def digest(part):
    return xxhash.xxh3_128(bytes(part)).digest()[::-1]

path, by = sys.argv[1], int(sys.argv[2])
data = bytearray(open(path, "rb").read())  # spec/container.md, sections 3 and 4
count, = struct.unpack_from("<I", data, 56)
for record in range(128, 128 + 48 * count, 48):
    kind, _, offset, size = struct.unpack_from("<4sIQQ", data, record)
    if kind == b"META":
        meta = bytes(data[offset:offset + size])
        number = re.search(rb'"arithmetic":([0-9]+)', meta)
        other = b"%d" % (int(number[1]) + by)
        assert len(other) == len(number[1])
        data[offset:offset + size] = meta[:number.start(1)] + other + meta[number.end(1):]
        data[record + 32:record + 48] = digest(data[offset:offset + size])
data[88:104] = data[-32:-16] = digest(data[128:128 + 48 * count])
data[120:128] = xxhash.xxh3_64(bytes(data[:120])).digest()[::-1]
open(path, "wb").write(data)
