"""moe_down against the float64 reference, from float and from 8-bit rows."""

import numpy as np
import pytest

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import choose_experts, group_by_expert, multiple, mxfp4, normal
from tests.ops.numerics import as_read, is_exact, rows_for, some_decoded
from tests.reference import ops
from tests.reference.formats import bf16_to_float, float_to_q8, mxfp4_to_float, q8_to_float


def native(backend, h, expert, layer, routing_weight, residual, q8=False, decoded=None):
    """h: [rows, chosen, inner]. Returns a new residual stream."""
    residual = residual.copy()
    flat = np.ascontiguousarray(h.reshape(expert.size, -1))
    inputs = (None, *float_to_q8(flat)) if q8 else (rows_for(backend, flat), None, None)
    groups = group_by_expert(expert, len(layer[0]))
    backend.moe_down(*inputs, *groups, *layer, np.ascontiguousarray(routing_weight), residual, decoded)
    return residual


def reference(h, expert, layer, routing_weight, residual):
    blocks, scales, bias = layer
    weight = mxfp4_to_float(blocks, scales)
    return residual + ops.moe_down(h, expert, routing_weight.astype(np.float64), weight, bf16_to_float(bias))


def random_case(rng, rows, hidden, inner, experts, chosen):
    layer, expert = mxfp4(rng, experts, hidden, inner), choose_experts(rng, rows, experts, chosen)
    weight = ops.softmax(normal(rng, rows, chosen)).astype(np.float32)
    return (
        normal(rng, rows, chosen, inner, scale=3),
        expert,
        layer,
        weight,
        normal(rng, rows, hidden, scale=2),
    )


def check(backend, rng, rows, hidden, inner, experts, chosen):
    h, expert, layer, weight, residual = random_case(rng, rows, hidden, inner, experts, chosen)
    h = as_read(backend, h)
    what = f"rows {rows}, hidden {hidden}, inner {inner}, experts {experts}, chosen {chosen}"
    expected = reference(h.astype(np.float64), expert, layer, weight, residual)
    decoded = some_decoded(rng, rows)
    found = native(backend, h, expert, layer, weight, residual, decoded=decoded)
    assert_close(found, expected, 2e-6, f"{what}, decoded {decoded}")
    if not is_exact(backend):
        return

    dequantised = q8_to_float(*float_to_q8(h.reshape(expert.size, inner))).reshape(h.shape)
    expected = reference(dequantised, expert, layer, weight, residual)
    assert_close(
        native(backend, h, expert, layer, weight, residual, q8=True), expected, 2e-6, f"8-bit input, {what}"
    )


def test_matches_the_reference(backend, rng):
    for rows in (1, int(rng.integers(2, 12)), int(rng.integers(12, 131))):
        experts = int(rng.integers(4, 17))
        check(backend, rng, rows, multiple(rng, 32, 6), multiple(rng, 32, 6), experts, 4)


@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (5, 2), (6, 6), (128, 4)])
def test_other_numbers_of_experts(backend, rng, experts, chosen):
    check(backend, rng, int(rng.integers(1, 30)), 32, 96, experts, chosen)


@pytest.mark.parametrize(("rows", "experts"), [(70, 1), (250, 1), (200, 2)])
def test_many_tokens_of_few_experts(backend, rng, rows, experts):
    """Enough for every tile of the GPU's: the reference's numbers, and the bits of a few rows alone."""
    case = random_case(rng, rows, multiple(rng, 32, 4), multiple(rng, 32, 4), experts, experts)
    h, expert, layer, weight, residual = as_read(backend, case[0]), *case[1:]
    for decoded in (0, 1):
        together = native(backend, h, expert, layer, weight, residual, decoded=rows * decoded)
        expected = reference(h.astype(np.float64), expert, layer, weight, residual)
        assert_close(together, expected, 2e-6, f"rows {rows}, decoded {decoded}")
        for part in (slice(3, 5), slice(rows - 60, rows)):
            alone = native(
                backend,
                h[part],
                expert[part],
                layer,
                weight[part],
                residual[part],
                decoded=len(h[part]) * decoded,
            )
            assert_same_bits(alone, together[part], f"{part} of {rows}, decoded {decoded}")


def test_matches_the_reference_at_the_width_of_the_released_models(backend, rng):
    check(backend, rng, 9, 64, 2880, 4, 4)


@pytest.mark.parametrize("q8", [False, True])
def test_a_row_does_not_depend_on_its_batch(backend, rng, q8):
    q8 = q8 and is_exact(backend)
    hidden, inner = multiple(rng, 32, 4), multiple(rng, 32, 6)
    for same in (False, True):
        h, expert, layer, weight, residual = random_case(rng, 75, hidden, inner, 8, 4)
        if same:
            expert = np.tile(np.int32([6, 1, 3, 0]), (75, 1))
        decoded = int(rng.integers(0, 2))
        together = native(backend, h, expert, layer, weight, residual, q8, 75 * decoded)
        for count in (1, 2, 3, 7, 16, 40):
            first = int(rng.integers(0, 75 - count + 1))
            rows = slice(first, first + count)
            alone = native(
                backend, h[rows], expert[rows], layer, weight[rows], residual[rows], q8, count * decoded
            )
            assert_same_bits(
                alone, together[rows], f"rows {first} to {first + count} of 75, same experts: {same}"
            )


def test_the_order_of_the_slots_does_not_matter(backend, rng):
    """Contributions are added by ascending expert, so that equal logits in another order change nothing."""
    h, expert, layer, weight, residual = random_case(rng, 10, 64, 96, 6, 4)
    shuffle = rng.permutation(4)
    plain = native(backend, h, expert, layer, weight, residual)
    shuffled = native(backend, h[:, shuffle], expert[:, shuffle], layer, weight[:, shuffle], residual)
    assert_same_bits(shuffled, plain, "slots shuffled")


@pytest.mark.parametrize("where", ["input", "routing weight", "scale"])
def test_nan_reaches_exactly_what_uses_it(cpu, rng, where):
    h, _, layer, weight, residual = random_case(rng, 9, 64, 64, 3, 2)
    expert = np.int32([[0, 1], [1, 2], [2, 0]] * 3)
    expected = np.zeros((9, 64), bool)
    if where == "input":
        h[4, 1, 63] = np.nan
        expected[4] = True
    elif where == "routing weight":
        weight[5, 0] = np.nan
        expected[5] = True
    else:
        layer[1][1, 10, 1] = 255
        expected[(expert == 1).any(axis=1), 10] = True
    assert (np.isnan(native(cpu, h, expert, layer, weight, residual)) == expected).all()


def test_nan_input_reaches_exactly_what_uses_it_on_every_backend(backend, rng):
    h, _, layer, weight, residual = random_case(rng, 9, 64, 64, 3, 2)
    expert = np.int32([[0, 1], [1, 2], [2, 0]] * 3)
    h[4, 1, 63] = np.nan
    expected = np.zeros((9, 64), bool)
    expected[4] = True
    assert (np.isnan(native(backend, h, expert, layer, weight, residual)) == expected).all()
