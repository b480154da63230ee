"""YaRN rotary embedding (arXiv 2309.00071), as the released models use it.

Frequencies and angles are rounded to float32, like the released code does: float64 angles drift away from
the trained model, by 7e-4 after 4,500 tokens.
"""

from __future__ import annotations

import math

import numpy as np


def yarn(config: dict) -> tuple[np.ndarray, float]:
    """(inv_freq float32 [head_dim / 2], the factor of cos and sin) for a model's config."""
    half = config["head_dim"] // 2
    base, factor = config["rope_theta"], config["rope_factor"]
    period = (np.float32(base) ** (np.arange(half, dtype=np.float32) / np.float32(half))).astype(np.float32)
    if factor <= 1:
        return np.float32(1) / period, 1.0

    def dimension_of(turns: float) -> float:
        """The dimension that turns this often within the context the model was first trained on."""
        return half * math.log(config["initial_context_length"] / (turns * 2 * math.pi)) / math.log(base)

    low = max(dimension_of(config["rope_beta_fast"]), 0.0)
    high = min(dimension_of(config["rope_beta_slow"]), config["head_dim"] - 1.0)
    ramp = np.clip((np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    inv_freq = ramp / (np.float32(factor) * period) + (1 - ramp) / period
    return inv_freq.astype(np.float32), 0.1 * math.log(factor) + 1


def rotate(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray, scale: float) -> np.ndarray:
    """Turns the first half of each head against the second. x: [rows, heads, head_dim]."""
    angle = np.asarray(positions, np.float32)[:, None] * inv_freq.astype(np.float32)
    cos = np.cos(angle.astype(np.float64))[:, None] * scale
    sin = np.sin(angle.astype(np.float64))[:, None] * scale
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
