"""Number formats of checkpoints and caches: bf16, MXFP4 and blocks of signed bytes.

bf16 travels as uint16 bit patterns, because NumPy has no such type.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32  # values that share one scale, in MXFP4 and in q8 alike

# OCP Microscaling Formats v1.0, section 5.3.3: sign, two exponent bits, one mantissa bit.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def bf16_to_float(bits: np.ndarray) -> np.ndarray:
    """float64 values of bf16 bit patterns; same shape."""
    assert bits.dtype == np.uint16, bits.dtype
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def float_to_bf16(values: np.ndarray) -> np.ndarray:
    """bf16 bit patterns of float values, rounded to nearest even; NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def mxfp4_to_float(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float64 weights [..., in] of packed blocks u8 [..., in / 32, 16] and scales u8 [..., in / 32].

    The low nibble is the even element. A scale s means 2**(s - 127); 255 is NaN (section 5.4.1).
    """
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, BLOCK)
    exponent = np.where(scales == 255, np.nan, scales.astype(np.float64) - 127)
    values = E2M1[codes] * np.exp2(exponent)[..., None]
    return values.reshape(*scales.shape[:-1], scales.shape[-1] * BLOCK)


def q8_to_float(q8: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float64 values of signed bytes [n, width] with one float scale per block [n, width / 32]."""
    return q8.astype(np.float64) * np.repeat(scale.astype(np.float64), BLOCK, axis=-1)


def float_to_q8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32 as signed bytes: scale = max|x| / 127, q8 = x * (127 / max|x|) to nearest even, as floats.
    (A quotient would round one value in a million otherwise.) Scale 0 for a zero block.

    A block with NaN or an infinity is all zeros with a scale of NaN.
    """
    blocks = np.asarray(values, dtype=np.float32).reshape(len(values), -1, BLOCK)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    finite = np.isfinite(largest)
    usable = finite & (largest > 0)
    inverse = np.divide(np.float32(127), largest, where=usable, out=np.zeros_like(largest))
    q8 = np.rint(np.multiply(blocks, inverse, where=usable, out=np.zeros_like(blocks)))
    scale = np.where(finite, largest / np.float32(127), np.float32(np.nan))[..., 0]
    return q8.astype(np.int8).reshape(values.shape), scale


def bf16_to_q8(bits: np.ndarray) -> np.ndarray:
    """float64 values of dense weights [out, in] as the CPU keeps them in 8 bits.

    scale = max|w| / 127 of each 32 values, rounded up to bf16; q8 = w / scale rounded to nearest even.
    """
    blocks = bf16_to_float(bits).reshape(len(bits), -1, BLOCK).astype(np.float32)
    scale = np.abs(blocks).max(axis=-1) / np.float32(127)
    up = ((scale.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)[..., None]
    inverse = np.divide(np.float32(1), up, where=up > 0, out=np.zeros_like(up))
    return (np.rint(blocks * inverse).astype(np.float64) * up).reshape(bits.shape)


def to_six_bits(weight: np.ndarray) -> np.ndarray:
    """float64 values of float32 weights [out, in] in six bits (csrc/cpu/screen_weights.h).

    In units of max|w| / 124 of each 32 values, rounded up to bf16. Of 16, the odd ones from 9 on become
    multiples of four; plus 128, their bits from the third on are the lowest two of 0, 2, 4 and 6, then of 1,
    3, 5 and 7, then of 8, 10, 12 and 14. Each of these becomes the nearest number that ends so.
    """
    blocks = weight.astype(np.float32).reshape(len(weight), -1, 2, 16)
    scale = np.abs(blocks).max(axis=(2, 3)) / np.float32(124)
    up = ((scale.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)[
        ..., None, None
    ]
    fours = blocks * np.divide(np.float32(0.25), up, where=up > 0, out=np.zeros_like(up))
    fourth, low = np.rint(fours[..., 9::2]).astype(int) + 32, np.zeros(blocks.shape, np.float32)
    for shift, place in ((0, slice(0, 8, 2)), (2, slice(1, 8, 2)), (4, slice(8, 16, 2))):
        low[..., place] = fourth >> shift & 3
    codes = 4 * np.rint(fours - np.float32(0.25) * low) + low
    return (codes.astype(np.float64) * up).reshape(weight.shape)


def packed_to_bf16(packed, first: int, marks, upper, width: int, lanes: int) -> np.ndarray:
    """bf16 bits [rows, width] of 12 bits a number (csrc/cpu/packed_weights.h), in vectors of `lanes` floats.

    A block of 128 (the last may be half) is the lower bytes of its numbers, then half bytes: the sign, and
    what the upper byte without it is above `first`, or where bit i of the row's mark stands, for numbers 64 i
    and on, a place in `upper` [rows, 16]. Groups of 4 * lanes numbers lie in the order of the registers:
    number lanes * v + 4 * q + p has place 16 * q + 8 * (v // 2) + 2 * p + v % 2. Two groups share the bytes
    of their codes.
    """
    group = 4 * lanes
    v, q, p = np.unravel_index(np.arange(group), (4, lanes // 4, 4))
    place = 16 * q + 8 * (v // 2) + 2 * p + v % 2
    common = np.array([(code & 8) << 4 | (first + (code & 7)) for code in range(16)], np.uint8)
    found = np.empty((len(packed), width), np.uint16)
    for k in range(0, width, 128):
        block = packed[:, k // 128 * 192 :]
        size = min(128, width - k)
        for g in range(size // group):
            number = k + g * group
            marked = marks >> np.uint64(number // 64) & np.uint64(1)
            table = np.where(marked[:, None] != 0, upper, common)
            code = block[:, size + g // 2 * group :][:, place] >> 4 * (g % 2) & 15
            high = np.take_along_axis(table, code.astype(np.intp), axis=1).astype(np.uint16)
            found[:, number : number + group] = high << 8 | block[:, g * group :][:, place]
    return found
