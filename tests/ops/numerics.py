"""What the backends' numerics ask of a test: GPUs read activations as bf16 and keep the cache in bf16."""

from __future__ import annotations

import numpy as np

from tests.reference.formats import bf16_to_float, float_to_bf16


def is_exact(backend) -> bool:
    """Whether activations stay float32 from op to op."""
    return backend.device == "cpu"


def as_read(backend, x: np.ndarray) -> np.ndarray:
    """float32 activations that the backend reads without rounding them."""
    return x if is_exact(backend) else bf16_to_float(float_to_bf16(x)).astype(np.float32)


def rows_for(backend, x: np.ndarray) -> np.ndarray:
    """Rows as the experts take them: float32, or bf16 bits."""
    return x if is_exact(backend) else float_to_bf16(x)


def rows_from(backend, x: np.ndarray) -> np.ndarray:
    return x if is_exact(backend) else bf16_to_float(x).astype(np.float32)


def rows_dtype(backend) -> type:
    return np.float32 if is_exact(backend) else np.uint16


def tolerance(backend, exact: float, rounded: float = 2.0**-8) -> float:
    """`exact`, or `rounded` where something on the way is rounded to bf16."""
    return exact if is_exact(backend) else rounded
