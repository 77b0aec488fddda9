"""Values of quantized tensors: spec/quantization.md, with numpy.

What it is not: a parser.  Sizes and indices were checked by ingot_shard.py before bytes come here.
"""

import numpy as np

DTYPES = ("F32", "F16", "BF16", "I32", "U8")
F32, F16, BF16, I32, U8 = range(5)
DTYPE_BYTES = np.array([4, 2, 2, 4, 1], "u8")
# BF16 is stored as its 16 bits: numpy has no such type.
DTYPE_NUMPY = ("<f4", "<f2", "<u2", "<i4", "u1")


def align(x, a):
    """The least multiple of a that is not less than x; for integers and arrays of u64."""
    return (x + (a - 1)) // a * a


def to_f32(raw, dtype):
    """F32, F16 or BF16 as binary32, exactly."""
    if dtype == BF16:
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    return raw.view(DTYPE_NUMPY[dtype]).astype("<f4")


def padding_is_zero(raw, start, stride, row_bits):
    """Are all bits behind row_bits zero, in the bytes of rows of codes from byte start on?"""
    used, extra = divmod(row_bits, 8)
    for position in range(used, stride):
        column = raw[(position - start) % stride::stride]
        if (column >> extra if position == used else column).any():
            return False
    return True


def scales_are_legal(raw, dtype):
    """Magnitudes 0 or in the range of section 2; the bits of floats are ordered like them."""
    magnitude = raw.view("<u4") & 0x7FFFFFFF if dtype == F32 else raw.view("<u2") & 0x7FFF
    if dtype == F16:
        least, greatest = 1, (15 + 15) << 10
    else:
        least, greatest = (x << (23 if dtype == F32 else 7) for x in (127 - 100, 127 + 100))
    return bool(((magnitude == 0) | (magnitude >= least) & (magnitude <= greatest)).all())


def unpack_codes(raw, columns, bits):
    """Codes [rows][columns] of rows of bytes: 8 codes take as many bytes as a code has bits."""
    codes = np.empty((len(raw), columns), "u1")
    for j in range(min(8, columns)):
        byte, shift = divmod(j * bits, 8)
        count = len(range(j, columns, 8))
        word = raw[:, byte::bits][:, :count].astype("u2")
        if shift + bits > 8:
            word |= raw[:, byte + 1::bits][:, :count].astype("u2") << 8
        codes[:, j::8] = word >> shift & ((1 << bits) - 1)
    return codes


def dequantize(record, n, k, parts):
    """w[n][k] = round32(s (q - z)), and outliers in place; parts as loaded and checked."""
    b, g, nnz = int(record["bits"]), int(record["group"]), int(record["outliers"])
    codes = parts[0].reshape(n, -1)
    scales = to_f32(parts[1], int(record["scale_dtype"])).reshape(n, -1)
    zeros = parts[2].reshape(n, -1)
    group = np.arange(k) // g
    w = np.empty((n, k), "<f4")
    step = max(1, (1 << 22) // k)
    for row in range(0, n, step):
        rows = slice(row, row + step)
        zero = zeros[rows].astype("i2")[:, group] if record["zero_mode"] else 1 << (b - 1)
        w[rows] = unpack_codes(codes[rows], k, b).astype("i2") - zero
        w[rows] *= scales[rows][:, group]
    if nnz:
        col_at = 8 * (n + 1)
        val_at = col_at + align(4 * nnz, 8)
        ptr = parts[3][:col_at].view("<u8").astype("i8")
        col = parts[3][col_at:col_at + 4 * nnz].view("<u4")
        w[np.repeat(np.arange(n), np.diff(ptr)), col] = to_f32(parts[3][val_at:],
                                                               int(record["dtype"]))
    return w
