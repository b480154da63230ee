"""moe_up against the float64 reference, from float and from 8-bit rows."""

import numpy as np
import pytest

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import choose_experts, empty, group_by_expert, multiple, mxfp4, normal
from tests.ops.numerics import as_read, is_exact, rows_dtype, rows_for, rows_from, some_decoded, tolerance
from tests.reference import ops
from tests.reference.formats import (
    BLOCK,
    bf16_to_float,
    float_to_bf16,
    float_to_q8,
    mxfp4_to_float,
    q8_to_float,
)

LIMIT = 7.0


def native(backend, rows, expert, layer, limit=LIMIT, q8=False, decoded=None):
    """Returns [rows, chosen, inner]; as (bytes, scales) when q8."""
    blocks, scales, bias = layer
    n, inner = expert.size, blocks.shape[1] // 2
    groups = group_by_expert(expert, len(blocks))
    if q8:
        out = (None, empty(n, inner, dtype=np.int8), empty(n, inner // BLOCK))
        inputs = (None, *float_to_q8(rows))
    else:
        out = (empty(n, inner, dtype=rows_dtype(backend)), None, None)
        inputs = (rows_for(backend, rows), None, None)
    backend.moe_up(*inputs, *groups, blocks, scales, bias, limit, expert.shape[1], *out, decoded)
    return out[1:] if q8 else rows_from(backend, out[0]).reshape(*expert.shape, inner)


def reference(rows, expert, layer, limit=LIMIT):
    blocks, scales, bias = layer
    return ops.moe_up(rows, expert, mxfp4_to_float(blocks, scales), bf16_to_float(bias), limit)


def check(backend, rng, rows, hidden, inner, experts, chosen, scale):
    layer = mxfp4(rng, experts, 2 * inner, hidden, scale)
    x = as_read(backend, normal(rng, rows, hidden))
    expert = choose_experts(rng, rows, experts, chosen)
    what = f"rows {rows}, hidden {hidden}, inner {inner}, experts {experts}, chosen {chosen}, size {scale}"
    allowed = 3e-6 * max(1, scale / 4)  # the SwiGLU squares sizes, the clamps bound the result
    decoded = some_decoded(rng, rows)
    h = native(backend, x, expert, layer, decoded=decoded)
    what += f", decoded {decoded}"
    assert_close(h, reference(x.astype(np.float64), expert, layer), tolerance(backend, allowed), what)
    if not is_exact(backend):
        return

    q8, q8_scale = native(backend, x, expert, layer, q8=True)
    expected = reference(q8_to_float(*float_to_q8(x)), expert, layer).reshape(expert.size, inner)
    blocks = expected.reshape(expert.size, -1, BLOCK)
    largest = np.abs(blocks).max(axis=-1)
    assert_close(q8_scale, largest / 127, allowed, f"scales, {what}")
    assert np.abs(q8.astype(int)).max() <= 127, what
    off = np.abs(q8_to_float(q8, q8_scale) - expected).reshape(blocks.shape).max(axis=-1)
    bound = 0.5 * largest / 127 + allowed * np.abs(expected).max()
    assert (off <= bound).all(), f"8-bit output, {what}: {(off / bound).max()} of what rounding explains"


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_matches_the_reference(backend, rng, scale):
    """At size 20 both clamps of the SwiGLU act on most values."""
    for rows in (1, int(rng.integers(2, 12)), int(rng.integers(12, 131))):
        experts = int(rng.integers(4, 17))
        check(backend, rng, rows, multiple(rng, 32, 6), multiple(rng, 32, 6), experts, 4, scale)


@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (5, 2), (6, 6), (128, 4)])
def test_other_numbers_of_experts(backend, rng, experts, chosen):
    check(backend, rng, int(rng.integers(1, 30)), 96, 32, experts, chosen, 1.0)


@pytest.mark.parametrize(("rows", "experts"), [(70, 1), (250, 1), (200, 2)])
def test_many_tokens_of_few_experts(backend, rng, rows, experts):
    """Enough for every tile of the GPU's: the reference's numbers, and the bits of a few rows alone."""
    hidden, inner = multiple(rng, 32, 4), multiple(rng, 32, 3)
    layer, chosen = mxfp4(rng, experts, 2 * inner, hidden), experts
    x, expert = as_read(backend, normal(rng, rows, hidden)), choose_experts(rng, rows, experts, chosen)
    for decoded in (0, 1):
        h = native(backend, x, expert, layer, decoded=rows * decoded)
        what = f"rows {rows}, hidden {hidden}, inner {inner}, decoded {decoded}"
        assert_close(h, reference(x.astype(np.float64), expert, layer), tolerance(backend, 3e-6), what)
        for part in (slice(3, 5), slice(rows - 60, rows)):
            alone = native(backend, x[part], expert[part], layer, decoded=len(x[part]) * decoded)
            assert_same_bits(alone, h[part], f"{part} of {what}")


def test_matches_the_reference_at_the_width_of_the_released_models(backend, rng):
    check(backend, rng, 9, 2880, 64, 4, 4, 1.0)


@pytest.mark.parametrize("q8", [False, True])
def test_a_row_does_not_depend_on_its_batch(backend, rng, q8):
    q8 = q8 and is_exact(backend)
    """A row alone, in a batch, and with all of it on the same experts: the same bits."""
    hidden, inner = multiple(rng, 32, 6), multiple(rng, 32, 4)
    layer = mxfp4(rng, 8, 2 * inner, hidden)
    x = normal(rng, 75, hidden)
    for expert in (choose_experts(rng, 75, 8, 4), np.tile(np.int32([6, 1, 3, 0]), (75, 1))):
        decoded = int(rng.integers(0, 2))
        together = native(backend, x, expert, layer, q8=q8, decoded=75 * decoded)
        for count in (1, 2, 3, 7, 16, 40):
            first = int(rng.integers(0, 75 - count + 1))
            rows = slice(first, first + count)
            alone = native(backend, x[rows], expert[rows], layer, q8=q8, decoded=count * decoded)
            what = f"rows {first} to {first + count} of 75"
            if q8:
                for a, b in zip(alone, together, strict=True):
                    assert_same_bits(a, b[4 * first : 4 * (first + count)], what)
            else:
                assert_same_bits(alone, together[first : first + count], what)


def test_swiglu_clamps(backend, rng):
    """No weights: the biases alone are gate and up. The gate has no lower clamp; 1 is added to up."""
    gate = np.array([-50, -20, -8, -7, -3, -1, 0, 1, 6.5, 7, 7.5, 100, 3, 3, 3, 3, 3, 3, 3, 3], np.float32)
    up = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -100, -7.5, -7, -1, 0, 7, 7.5, 100], np.float32)
    gate, up = np.resize(gate, 32), np.resize(up, 32)
    bias = float_to_bf16(np.stack([gate, up], axis=1).reshape(1, 64))
    layer = np.zeros((1, 64, 1, 16), np.uint8), np.full((1, 64, 1), 127, np.uint8), bias
    h = native(backend, normal(rng, 1, 32), np.int32([[0]]), layer)[0, 0]
    expected = ops.swiglu(gate.astype(np.float64), up.astype(np.float64), LIMIT)
    np.testing.assert_allclose(h, expected, rtol=tolerance(backend, 5e-6), atol=1e-30)


def test_every_code_and_scale(backend, rng):
    """One weight per output, so that each of the 16 codes under each scale from 2^-127 is seen alone."""
    scales = np.arange(0, 150, dtype=np.uint8).repeat(16)
    codes = np.tile(np.arange(16, dtype=np.uint8), 150)
    blocks = np.zeros((1, 4800, 1, 16), np.uint8)
    column = int(rng.integers(32))
    blocks[0, 1::2, 0, column // 2] = codes << (4 * (column % 2))
    all_scales = np.full((1, 4800, 1), 127, np.uint8)
    all_scales[0, 1::2, 0] = scales
    bias = np.zeros((1, 4800), np.uint16)
    bias[0, ::2] = float_to_bf16(np.float32([1]))[0]
    x = normal(rng, 1, 32)
    x[0, column] = 1
    h = native(backend, x, np.int32([[0]]), (blocks, all_scales, bias), limit=3e38)[0, 0]
    up = mxfp4_to_float(blocks, all_scales)[0, 1::2, column]
    expected = ops.swiglu(np.ones(2400), up, np.inf)
    np.testing.assert_allclose(h, expected, rtol=tolerance(backend, 2e-6))


@pytest.mark.parametrize("where", ["input", "scale"])
def test_nan_reaches_exactly_what_uses_it(cpu, rng, where):
    layer = mxfp4(rng, 3, 64, 64)
    x, expert = normal(rng, 9, 64), np.int32([[0, 1], [1, 2], [2, 0]] * 3)
    expected = np.zeros((9, 2, 32), bool)
    if where == "input":
        x[4, 63] = np.nan
        expected[4] = True
    else:
        layer[1][1, 10, 1] = 255  # the gate of the sixth output of expert 1
        expected[:, :, 5] = expert == 1
    assert (np.isnan(native(cpu, x, expert, layer)) == expected).all()


def test_nan_input_reaches_exactly_what_uses_it_on_every_backend(backend, rng):
    layer = mxfp4(rng, 3, 64, 64)
    x, expert = normal(rng, 9, 64), np.int32([[0, 1], [1, 2], [2, 0]] * 3)
    x[4, 63] = np.nan
    expected = np.zeros((9, 2, 32), bool)
    expected[4] = True
    assert (np.isnan(native(backend, x, expert, layer)) == expected).all()
