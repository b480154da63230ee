"""8-bit blocks, as moe_gate writes them beside its float rows, at the ends of float32's range.

The oracle is the definition over those rows: scale = max|x| / 127, and zeros below 1e-36.
"""

import numpy as np
import pytest

from tests.conftest import cpu_backend
from tests.ops.inputs import empty, linear, normal
from tests.reference.formats import float_to_bf16

FLOOR = 1e-36


def quantized(isa, rng, weight, rows=3):
    """(float rows, 8-bit rows, scales) in blocks of 32; `weight` decides how large each block is."""
    hidden = len(weight)
    normed, q8, scale = (
        empty(rows, hidden), empty(rows, hidden, dtype=np.int8), empty(rows, hidden // 32),
    )  # fmt: skip
    cpu_backend(isa, 2).moe_gate(
        *(
            normal(rng, rows, hidden),
            float_to_bf16(weight),
            1e-5,
            *linear(rng, 4, hidden),
            1,
            normed,
            q8,
            scale,
        ),
        *(
            empty(rows, 1, dtype=np.int32),
            empty(rows, 1),
            empty(5, dtype=np.int32),
            empty(rows, dtype=np.int32),
        ),
    )
    return normed.reshape(-1, 32), q8.reshape(-1, 32), scale.reshape(-1)


@pytest.mark.parametrize("typical", [1e-45, 1e-40, 3e-37, FLOOR, 3e-36, 1e-30, 1.0, 1e37])
def test_blocks_from_denormal_to_huge(isa, rng, typical):
    weight = np.repeat(typical * rng.uniform(0.3, 1, 40), 32).astype(np.float32)
    rows, q8, scale = quantized(isa, rng, weight)
    largest = np.abs(rows).max(axis=1).astype(np.float64)
    tiny = largest < np.float32(FLOOR)
    assert (scale[tiny] == 0).all()
    assert (q8[tiny] == 0).all()
    np.testing.assert_allclose(scale[~tiny], largest[~tiny] / 127, rtol=1e-6)
    assert (np.abs(q8[~tiny].astype(int)).max(axis=1) == 127).all()
    # Half a step, and a little for x / scale rounding twice.
    error = np.abs(q8 * scale[:, None].astype(np.float64) - rows)[~tiny]
    assert (error <= 0.5001 * scale[~tiny, None].astype(np.float64)).all()


def test_blocks_that_are_not_finite_have_nan_scales_and_no_neighbour_does(isa, rng):
    weight = np.ones(320, np.float32)
    weight[[40, 230]] = np.inf, np.nan
    rows, q8, scale = quantized(isa, rng, weight)
    spoilt = ~np.isfinite(rows).all(axis=1)
    assert spoilt.sum() == 6
    assert (np.isnan(scale) == spoilt).all()
    assert (q8[spoilt] == 0).all()
