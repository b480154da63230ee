"""Dense ops with weights in 8 bits (dense_dtype="q8").

Oracle: float64 products of the rounded weights and inputs.
"""

from functools import cache

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.errors import GptossError

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import bf16, empty, linear, multiple, norm_weight, normal
from tests.ops.test_attention_in import Layer, paged_batch, random_sequences
from tests.reference import ops
from tests.reference.formats import bf16_to_float, bf16_to_q8, float_to_q8, q8_to_float
from tests.reference.rope import rotate

#: A float32 norm may put a value on the other side of a rounding than the float64 one: one step of 127.
ONE_STEP = 2e-3


@cache
def backend_of(isa):
    return _native.Backend(device="cpu", threads=2, isa=isa, dense_dtype="q8")


@pytest.fixture
def q8(isa):
    return backend_of(isa)


def shapes(rng):
    yield 1, 96, 64
    yield 7, 2880, 128
    for rows in (1, int(rng.integers(2, 20)), int(rng.integers(20, 131))):
        yield rows, multiple(rng, 32, 12), multiple(rng, 32, 17)


def test_attention_out_multiplies_rounded_inputs_and_weights(q8, rng):
    for rows, hidden, width in shapes(rng):
        weight, bias = linear(rng, hidden, width)
        weight[rng.integers(hidden), :32] = 0  # a block of zeros
        attended, residual = normal(rng, rows, width, scale=3), normal(rng, rows, hidden, scale=10)
        rounded = q8_to_float(*float_to_q8(attended))
        expected = residual + ops.attention_out(rounded, bf16_to_q8(weight), bf16_to_float(bias))
        q8.attention_out(attended, weight, bias, residual)
        assert_close(residual, expected, 2e-6, f"rows {rows}, hidden {hidden}, width {width}")


def one_step(normed, weight, expected):
    """What an input's code that is another by one changes at most; in narrow rows that is much."""
    step = np.abs(normed).max() / 127 * np.abs(weight).max() / np.abs(expected).max()
    return max(ONE_STEP, float(step))


def test_unembed(q8, rng):
    for rows, hidden, vocab in shapes(rng):
        norm, lm_head, residual = (
            norm_weight(rng, hidden),
            bf16(rng, vocab, hidden),
            normal(rng, rows, hidden),
        )
        logits = empty(rows, vocab)
        q8.unembed(residual, np.arange(rows, dtype=np.int32), norm, 1e-5, lm_head, logits)
        normed = ops.rms_norm(residual.astype(np.float64), bf16_to_float(norm), 1e-5)
        weight = bf16_to_q8(lm_head)
        expected = q8_to_float(*float_to_q8(normed)) @ weight.T
        allowed = one_step(normed, weight, expected)
        assert_close(logits, expected, allowed, f"rows {rows}, hidden {hidden}, vocab {vocab}")


def test_attention_in(q8, rng):
    hidden = multiple(rng, 32, 9)
    layer = Layer(rng, hidden, 4, 2)
    batch = paged_batch(rng, random_sequences(rng, int(rng.integers(2, 40)), 90), 2, 16, np.float32)
    residual = normal(rng, int(batch.row_start[-1]), hidden)
    queries = layer.native(q8, residual, batch)
    positions = np.concatenate([batch.positions(s) for s in range(len(batch.row_start) - 1)])
    normed = ops.rms_norm(residual.astype(np.float64), bf16_to_float(layer.norm), layer.eps)
    rounded = q8_to_float(*float_to_q8(normed))
    weight, bias = bf16_to_q8(layer.q[0]), bf16_to_float(layer.q[1])
    heads = (rounded @ weight.T + bias).reshape(len(residual), layer.heads, -1)
    expected = rotate(heads, positions, layer.inv_freq, layer.rope_scale)
    # Rotations mix two of them.
    allowed = 2 * layer.rope_scale * one_step(normed, weight, expected)
    assert_close(queries, expected, allowed, f"queries, hidden {hidden}")


def test_a_row_does_not_depend_on_its_batch(q8, rng):
    hidden, width = multiple(rng, 32, 12), multiple(rng, 32, 8)
    weight, bias = linear(rng, hidden, width)
    attended, residual = normal(rng, 67, width), normal(rng, 67, hidden)
    together = residual.copy()
    q8.attention_out(attended, weight, bias, together)
    for count in (1, 2, 3, 5, 13, 31):
        first = int(rng.integers(0, 67 - count + 1))
        rows = slice(first, first + count)
        alone = residual[rows].copy()
        q8.attention_out(attended[rows].copy(), weight, bias, alone)
        assert_same_bits(alone, together[rows], f"rows {first} to {first + count} of 67")


def test_largest_values_do_not_overflow(q8, rng):
    """Inputs and weights of +-127 steps only: the largest sums that 16 and 32 bits have to hold."""
    signs = np.array([-1, 1], np.float32)
    attended, weight = rng.choice(signs, (3, 2880)), rng.choice(signs, (64, 2880))
    attended[1], weight[1] = 1, 1
    attended[2], weight[2] = -1, 1
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
    residual = np.zeros((3, 64), np.float32)
    q8.attention_out(attended, bits, np.zeros(64, np.uint16), residual)
    expected = q8_to_float(*float_to_q8(attended)) @ bf16_to_q8(bits).T
    assert_close(residual, expected, 1e-6, "products of extreme values")


def test_nan_stays_where_it_is(q8, rng):
    weight, bias = linear(rng, 96, 64)
    weight[5, 40] = 0x7FC0
    attended, residual = normal(rng, 9, 64), normal(rng, 9, 96)
    attended[4, 63] = np.nan
    q8.attention_out(attended, weight, bias, residual)
    expected = np.zeros((9, 96), bool)
    expected[4], expected[:, 5] = True, True
    assert (np.isnan(residual) == expected).all()


def test_other_devices_and_names_are_refused():
    with pytest.raises(GptossError, match="dense_dtype is 'q4', expected 'bf16', 'packed' or 'q8'"):
        _native.Backend(dense_dtype="q4")
    for device in _native.devices()[1:]:
        for dtype in ("packed", "q8"):
            with pytest.raises(GptossError, match=f"'{dtype}', which {device} does not offer"):
                _native.Backend(device=device, dense_dtype=dtype)
