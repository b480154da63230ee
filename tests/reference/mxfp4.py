"""The quantiser of OCP Microscaling Formats v1.0, section 6.3, in float64 and by search: nothing clever."""

from __future__ import annotations

import numpy as np

from tests.reference.formats import BLOCK

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # E2M1 by code, section 5.3.3


def nearest_codes(magnitudes: np.ndarray) -> np.ndarray:
    """Codes 0 to 7 of the nearest magnitudes, ties to the even code, what is larger than 6 to 6."""
    distance = np.abs(magnitudes[..., None] - MAGNITUDES)
    # Of two equally near, the one whose mantissa bit, the code's lowest, is 0.
    odd = np.arange(8) % 2
    return np.lexsort((np.broadcast_to(odd, distance.shape), distance), axis=-1)[..., 0]


def quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes uint8 [n, 32] (4 bits each), scales uint8 [n], saturated bool [n, 32] of float64 [n, 32]."""
    assert values.dtype == np.float64
    assert values.shape[1] == BLOCK
    largest = np.abs(values).max(axis=1)
    _, exponent = np.frexp(np.where(largest > 0, largest, 1))  # largest = m * 2^exponent, 0.5 <= m < 1
    shared = np.where(largest > 0, exponent - 1 - 2, -127)
    shared = np.clip(shared, -127, 127)
    scaled = np.ldexp(np.abs(values), -shared[:, None])
    codes = nearest_codes(scaled).astype(np.uint8) | (np.signbit(values).astype(np.uint8) << 3)
    return codes, (shared + 127).astype(np.uint8), scaled > 6


def unpack(codes: np.ndarray) -> np.ndarray:
    """uint8 [n, 32] of packed uint8 [n, 16], low nibble first."""
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), BLOCK)
