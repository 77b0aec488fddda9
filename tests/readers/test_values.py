"""The Python reader's values against plain arithmetic, on fresh random tensors.

Rows of codes are built as one large integer each, as quantization.md, section 1, describes them;
values are computed as fractions and rounded once.  The rules of section 6 are tried on both sides
of every limit.

    test_values.py --reader FOLDER [--seed N]
"""

import argparse
import random
import struct
import sys
from fractions import Fraction

import numpy as np


def pack_row(codes, bits):
    stride = (-(-len(codes) * bits // 8) + 15) // 16 * 16
    return sum(code << k * bits for k, code in enumerate(codes)).to_bytes(stride, "little")


def random_scale(rng, dtype):
    """Bits of a legal scale and its value."""
    if dtype == 1:
        bits = rng.choice([0, 1, 0x3FF, 0x400, 0x7800, rng.randrange(0x7801)])
    else:
        bits = rng.randrange(27 << 23, (227 << 23) + 1) if rng.random() < 0.9 else 0
        bits &= 0xFFFF0000 if dtype == 2 else 0xFFFFFFFF
    if dtype == 1:
        bits |= rng.choice([0, 0x8000])
        return struct.pack("<H", bits), Fraction(struct.unpack("<e", struct.pack("<H", bits))[0])
    bits |= rng.choice([0, 1 << 31])
    value = Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])
    return (struct.pack("<I", bits) if dtype == 0 else struct.pack("<H", bits >> 16)), value


def round32(exact):
    """To nearest, ties to even, by comparing with the neighbours of a first guess."""
    guess = np.float32(float(exact))
    near = [guess] + [np.nextafter(guess, np.float32(end)) for end in (np.inf, -np.inf)]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view("u4")) & 1))


def check_tensor(values, rng):
    bits, dtype, zero_mode = rng.randrange(2, 9), rng.randrange(3), rng.randrange(2)
    n, k = rng.randrange(1, 5), rng.choice([1, 7, 8, 25, 64, rng.randrange(1, 200)])
    group = rng.choice([k] + [g for g in (8, 16, 32, 64) if g <= k])
    groups = -(-k // group)
    codes = [[rng.randrange(1 << bits) for _ in range(k)] for _ in range(n)]
    scales = [[random_scale(rng, dtype) for _ in range(groups)] for _ in range(n)]
    zeros = [[rng.randrange(1 << bits) if zero_mode else 1 << (bits - 1) for _ in range(groups)]
             for _ in range(n)]
    places = sorted(rng.sample(range(n * k), rng.randrange(0, min(n * k, 9))))
    outliers = {place: np.float16(rng.gauss(0, 3)) for place in places}
    row_ptr = [sum(place < row * k for place in places) for row in range(n + 1)]
    part3 = b"".join(struct.pack("<Q", p) for p in row_ptr)
    part3 += b"".join(struct.pack("<I", place % k) for place in places) + bytes(len(places) % 2 * 4)
    part3 += b"".join(outliers[place].tobytes() for place in places)
    parts = [b"".join(pack_row(row, bits) for row in codes),
             b"".join(raw for row in scales for raw, _ in row),
             bytes(z for row in zeros for z in row) if zero_mode else b"", part3]
    record = {"bits": bits, "group": group, "outliers": len(places), "scale_dtype": dtype,
              "zero_mode": zero_mode, "dtype": 1}
    got = values.dequantize(record, n, k, [np.frombuffer(p, "u1") for p in parts])
    for row in range(n):
        for col in range(k):
            j = col // group
            want = round32(scales[row][j][1] * (codes[row][col] - zeros[row][j]))
            want = np.float32(outliers.get(row * k + col, want))
            assert got[row, col] == want, (record, n, k, row, col, got[row, col], want)
    row_bits = k * bits
    stride = len(parts[0]) // n
    for bit in range(n * stride * 8):
        # A bit that is set where a row has no code must be seen, from any start of a chunk.
        if bit % (stride * 8) >= row_bits:
            raw = bytearray(parts[0])
            raw[bit // 8] |= 1 << bit % 8
            start = rng.randrange(bit // 8 + 1)
            piece = np.frombuffer(bytes(raw), "u1")[start:]
            assert not values.padding_is_zero(piece, start, stride, row_bits), (bit, start)
    start = rng.randrange(n * stride)
    assert values.padding_is_zero(np.frombuffer(parts[0], "u1")[start:], start, stride, row_bits)
    assert values.scales_are_legal(np.frombuffer(parts[1], "u1"), dtype)


def check_scale_limits(values):
    f32, f16 = (lambda x: struct.pack("<I", x)), (lambda x: struct.pack("<H", x))
    for dtype, pack, sign, legal, illegal in (
            (0, f32, 1 << 31, (0, 27 << 23, 127 << 23, 227 << 23),
             (1, (27 << 23) - 1, (227 << 23) + 1, 255 << 23, (255 << 23) + 1)),
            (1, f16, 1 << 15, (0, 1, 0x3C00, 0x7800), (0x7801, 0x7C00, 0x7C01, 0x7FFF)),
            (2, f16, 1 << 15, (0, 27 << 7, 127 << 7, 227 << 7),
             (1, (27 << 7) - 1, (227 << 7) + 1, 255 << 7, (255 << 7) + 1))):
        for verdict, cases in ((True, legal), (False, illegal)):
            for bits in cases:
                for raw in (pack(bits), pack(bits | sign)):
                    assert values.scales_are_legal(np.frombuffer(raw, "u1"), dtype) is verdict, (
                        dtype, hex(bits))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reader", required=True)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    sys.path.insert(0, options.reader)
    import ingot_values as values

    print(f"seed {options.seed}")
    rng = random.Random(options.seed)
    # The examples of quantization.md, sections 1 and 8.
    for bits, raw in ((3, b"\xd1\x58\x1f"), (4, b"\x21\x43\x65\x07")):
        row = np.frombuffer(raw + bytes(16 - len(raw)), "u1").reshape(1, -1)
        assert values.unpack_codes(row, 8, bits).tolist() == [[1, 2, 3, 4, 5, 6, 7, 0]], bits
    check_scale_limits(values)
    for _ in range(150):
        check_tensor(values, rng)
    print("150 tensors")


if __name__ == "__main__":
    main()
