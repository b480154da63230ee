"""The noise of a draw: Philox 4x32-10 as its paper states it, and which of its words is whose.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.4.
"""

from __future__ import annotations

import numpy as np

MASK = np.uint64(0xFFFFFFFF)


def philox(key: int, counter_low: np.ndarray, counter_high: int) -> np.ndarray:
    """uint64 [..., 4], each below 2^32, for a 64-bit key and counters of twice 64 bits."""
    low, high = np.asarray(counter_low, np.uint64), np.uint64(counter_high)
    x = [
        low & MASK,
        low >> np.uint64(32),
        np.full_like(low, high & MASK),
        np.full_like(low, high >> np.uint64(32)),
    ]
    keys = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * x[0], np.uint64(0xCD9E8D57) * x[2]
        x = [
            (second >> np.uint64(32)) ^ x[1] ^ np.uint64(keys[0]),
            second & MASK,
            (first >> np.uint64(32)) ^ x[3] ^ np.uint64(keys[1]),
            first & MASK,
        ]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(x, axis=-1)


def gumbel(seed: int, position: int, vocab: int) -> np.ndarray:
    """float64 [vocab]: 64 tokens share 16 counters; word w of counter i belongs to token 16 w + i of them."""
    token = np.arange(vocab)
    words = philox(seed, np.arange(-(-vocab // 64) * 16), position)
    bits = words[token // 64 * 16 + token % 16, token // 16 % 4]
    return -np.log(-np.log((bits + 0.5) / 2**32))
