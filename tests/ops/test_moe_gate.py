"""moe_gate against the float64 reference: norm, routing, grouping and the 8-bit copy of its output."""

import numpy as np
import pytest

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import empty, group_by_expert, linear, multiple, norm_weight, normal
from tests.ops.numerics import is_exact, rows_dtype, rows_from, tolerance
from tests.reference import ops
from tests.reference.formats import BLOCK, bf16_to_float, float_to_bf16

NAMES = ("normed", "q8", "scale", "expert", "routing_weight", "start", "order")


def native(backend, residual, norm, eps, router, chosen, q8=True) -> dict[str, np.ndarray]:
    rows, hidden = residual.shape
    experts = len(router[0])
    q8 = q8 and is_exact(backend)
    out = {
        "normed": empty(rows, hidden, dtype=rows_dtype(backend)),
        "q8": empty(rows, hidden, dtype=np.int8) if q8 else None,
        "scale": empty(rows, hidden // BLOCK) if q8 else None,
        "expert": empty(rows, chosen, dtype=np.int32),
        "routing_weight": empty(rows, chosen),
        "start": empty(experts + 1, dtype=np.int32),
        "order": empty(rows * chosen, dtype=np.int32),
    }
    backend.moe_gate(residual, norm, eps, *router, chosen, *(out[name] for name in NAMES))
    out["normed"] = rows_from(backend, out["normed"])
    return {name: array for name, array in out.items() if array is not None}


def check_quantised(out, what):
    """The scale is max|x| / 127 and every byte is the nearest to x / scale."""
    x = out["normed"].reshape(len(out["normed"]), -1, BLOCK).astype(np.float64)
    scale, largest = out["scale"].astype(np.float64), np.abs(x).max(axis=-1)
    assert_close(scale, largest / 127, 2e-7, f"scales, {what}")
    q8 = out["q8"].reshape(x.shape).astype(np.float64)
    assert np.abs(q8).max() <= 127, what
    error = np.abs(q8 * scale[..., None] - x).max(axis=-1)
    assert (error <= 0.50003 * scale).all(), f"{what}: {(error / scale).max()} steps off, half is allowed"


def check(backend, rng, rows, hidden, experts, chosen, q8=True):
    norm, eps, router = norm_weight(rng, hidden), 1e-5, linear(rng, experts, hidden)
    residual = normal(rng, rows, hidden, scale=rng.choice([0.01, 1, 30]))
    out = native(backend, residual, norm, eps, router, chosen, q8)
    what = f"rows {rows}, hidden {hidden}, experts {experts}, chosen {chosen}"

    weight, bias = map(bf16_to_float, router)
    normed = ops.rms_norm(residual.astype(np.float64), bf16_to_float(norm), np.float32(eps))
    assert_close(out["normed"], normed, tolerance(backend, 1e-6), f"normed, {what}")

    # Two nearly equal logits may swap in float32: judge the choice by the logits it stands for.
    logits, expert = ops.router_logits(normed, weight, bias), out["expert"]
    picked = np.take_along_axis(logits, expert, axis=1)
    slack = 1e-5 * np.abs(logits).max()
    others = logits.copy()
    np.put_along_axis(others, expert, -np.inf, axis=1)
    assert all(len(set(row)) == chosen for row in expert), f"experts chosen twice, {what}"
    assert (np.diff(picked, axis=1) <= slack).all(), f"experts not by falling logit, {what}"
    assert (picked.min(axis=1) >= others.max(axis=1) - slack).all(), f"a larger logit was passed over, {what}"
    assert_close(out["routing_weight"], ops.softmax(picked), 1e-5, f"routing weights, {what}")

    start, order = group_by_expert(expert, experts)
    assert (out["start"] == start).all(), f"groups, {what}"
    assert (out["order"] == order).all(), f"groups, {what}"
    if "q8" in out:
        check_quantised(out, what)


@pytest.mark.parametrize("q8", [True, False])
def test_matches_the_reference(backend, rng, q8):
    for rows in (1, int(rng.integers(2, 20)), 130):
        experts = int(rng.integers(4, 129))
        check(backend, rng, rows, multiple(rng, 32, 12), experts, 4, q8)


def test_any_number_of_chosen_experts(backend, rng):
    experts = int(rng.integers(2, 9))
    for chosen in {1, experts, int(rng.integers(1, experts + 1))}:
        check(backend, rng, 5, 96, experts, chosen)


@pytest.mark.parametrize("experts", [32, 128])
def test_matches_the_reference_at_the_width_of_the_released_models(backend, rng, experts):
    check(backend, rng, 6, 2880, experts, 4)


def test_a_row_does_not_depend_on_its_batch(backend, rng):
    hidden, experts = multiple(rng, 32, 12), 32
    norm, router = norm_weight(rng, hidden), linear(rng, experts, hidden)
    residual = normal(rng, 70, hidden)
    together = native(backend, residual, norm, 1e-5, router, 4)
    for count in (1, 2, 3, 5, 17, 33):
        first = int(rng.integers(0, 70 - count + 1))
        rows = slice(first, first + count)
        alone = native(backend, residual[rows].copy(), norm, 1e-5, router, 4)
        for name in set(together) - {"start", "order"}:
            assert_same_bits(
                alone[name], together[name][rows], f"{name} of rows {first} to {first + count} of 70"
            )


def test_equal_logits_go_to_the_lower_expert(backend, rng):
    weight, bias = linear(rng, 12, 64)
    weight[[1, 4, 7, 9, 10]] = weight[0]
    bias[[1, 4, 7, 9, 10]] = float_to_bf16(np.float32([30]))
    out = native(backend, normal(rng, 20, 64), norm_weight(rng, 64), 1e-5, (weight, bias), 4)
    assert (out["expert"] == [1, 4, 7, 9]).all()
    assert (out["routing_weight"] == 0.25).all()


def test_large_router_logits(backend, rng):
    weight, bias = linear(rng, 8, 32)
    bias[2], bias[5] = float_to_bf16(np.float32([30000, -30000]))
    out = native(backend, normal(rng, 3, 32), norm_weight(rng, 32), 1e-5, (weight, bias), 4)
    assert (out["expert"][:, 0] == 2).all()
    assert 5 not in out["expert"]
    assert (out["routing_weight"] == [1, 0, 0, 0]).all()


def test_rounds_halves_to_even(cpu, rng):
    """A row made so that its norm is 1 / 128 exactly; weights of 128 give the row back, its scale is 1."""
    row = (rng.integers(-126, 126, (3, 64)) + 0.5).astype(np.float32)
    row[:, [0, 40]] = 127
    for i in range(3):
        eps = 16384 - float(np.mean(row[i].astype(np.float64) ** 2))
        norm = float_to_bf16(np.full(64, 128, np.float32))
        out = native(cpu, row[i : i + 1], norm, eps, linear(rng, 4, 64), 4)
        assert (out["normed"] == row[i]).all()
        assert (out["scale"] == 1).all()
        assert (out["q8"] == np.rint(row[i])).all()


def test_a_zero_block_has_scale_zero(cpu, rng):
    residual = normal(rng, 2, 96)
    residual[0, 32:64] = 0
    residual[1] = 0
    out = native(cpu, residual, norm_weight(rng, 96), 1e-5, linear(rng, 4, 96), 4)
    assert (out["scale"] == 0).tolist() == [[False, True, False], [True, True, True]]
    assert (out["q8"][0, 32:64] == 0).all()
    assert (out["q8"][1] == 0).all()


def test_tiny_rows_are_lifted_no_higher_than_eps_allows(backend, rng):
    """At 1e-4 of the size of eps, another eps would change everything."""
    residual = normal(rng, 4, 64, scale=1e-4)
    for eps in (1e-5, 1e-6):
        norm = norm_weight(rng, 64)
        out = native(backend, residual, norm, eps, linear(rng, 4, 64), 4)
        expected = ops.rms_norm(residual.astype(np.float64), bf16_to_float(norm), eps)
        assert_close(out["normed"], expected, tolerance(backend, 1e-6), f"eps {eps}")


def test_nan_stays_in_its_row(backend, rng):
    """Whatever a NaN row is routed to, ids stay in range and the other rows are as without it."""
    residual, norm, router = normal(rng, 6, 96), norm_weight(rng, 96), linear(rng, 9, 96)
    clean = native(backend, residual, norm, 1e-5, router, 4)
    residual[3, 50] = np.nan
    out = native(backend, residual, norm, 1e-5, router, 4)
    others = np.delete(np.arange(6), 3)
    for name in set(out) - {"start", "order"}:
        assert_same_bits(out[name][others], clean[name][others], f"{name} of the rows beside the NaN")
    assert np.isnan(out["normed"][3]).all()
    if "scale" in out:
        assert np.isnan(out["scale"][3]).all()
    assert np.isnan(out["routing_weight"][3]).all()
    assert sorted(set(out["expert"][3])) == sorted(out["expert"][3]), "an expert was chosen twice"
    start, order = group_by_expert(out["expert"], 9)
    assert (out["start"] == start).all()
    assert (out["order"] == order).all()
