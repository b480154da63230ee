"""moe_gate and moe_down with a say in it. Oracle: tests/reference, float64; of untouched rows: every bit."""

from __future__ import annotations

import numpy as np

from tests.compare import assert_close, assert_same_bits
from tests.ops import test_moe_down
from tests.ops.inputs import empty, group_by_expert, linear, norm_weight, normal
from tests.ops.numerics import as_read, rows_dtype, rows_for, some_decoded
from tests.reference import ops
from tests.reference.formats import bf16_to_float


def gate(backend, residual, norm, router, chosen, *controls):
    rows, hidden = residual.shape
    out = [
        empty(rows, hidden, dtype=rows_dtype(backend)),
        None,
        None,
        empty(rows, chosen, dtype=np.int32),
        empty(rows, chosen),
        empty(len(router[0]) + 1, dtype=np.int32),
        empty(rows * chosen, dtype=np.int32),
    ]
    backend.moe_gate(residual, norm, 1e-5, *router, chosen, *out, *controls)
    return out[3], out[4], out[5], out[6]


def random_controls(rng, slots, experts, chosen):
    boost = (normal(rng, slots, experts) * (rng.random((slots, experts)) < 0.3) * 3).astype(np.float32)
    rank = np.zeros((slots, experts), np.int32)
    for row in rank:
        order = rng.permutation(experts)
        row[order[: int(rng.integers(0, chosen + 1))]] = 1
        row[order[chosen : chosen + int(rng.integers(0, experts - chosen + 1))]] = -1
    return boost, rank


def test_experts_are_masked_forced_and_boosted(backend, rng):
    """Choice, order, weights and groups; rows of no slot keep every bit."""
    for rows in (1, 7, 70):
        experts, chosen, hidden = (
            int(rng.integers(4, 129)),
            int(rng.integers(1, 5)),
            32 * int(rng.integers(1, 9)),
        )
        norm, router = norm_weight(rng, hidden), linear(rng, experts, hidden)
        residual, slots = normal(rng, rows, hidden), 3
        boost, rank = random_controls(rng, slots, experts, chosen)
        slot = rng.integers(-1, slots, rows).astype(np.int32)
        expert, weight, start, order = gate(backend, residual, norm, router, chosen, slot, boost, rank)
        plain = gate(backend, residual, norm, router, chosen)
        none = slot < 0
        np.testing.assert_array_equal(expert[none], plain[0][none])
        assert_same_bits(weight[none], plain[1][none], "rows of no slot")
        row_boost = np.where(none[:, None], 0.0, boost[slot])
        row_rank = np.where(none[:, None], 0, rank[slot])
        wide = bf16_to_float(router[0]), bf16_to_float(router[1])
        normed = ops.rms_norm(residual.astype(np.float64), bf16_to_float(norm), np.float32(1e-5))
        logits = ops.router_logits(normed, *wide) + row_boost
        picked = np.take_along_axis(logits, expert, axis=1)
        picked_rank = np.take_along_axis(row_rank, expert, axis=1)
        slack = 1e-5 * np.abs(logits).max()
        # Never a lower rank before a higher one; among equals, no smaller logit before a larger one.
        score = 1e6 * row_rank + logits
        others = score.copy()
        np.put_along_axis(others, expert, -np.inf, axis=1)
        assert (np.diff(1e6 * picked_rank + picked, axis=1) <= slack).all()
        assert ((1e6 * picked_rank + picked).min(axis=1) >= others.max(axis=1) - slack).all()
        assert_close(
            weight, ops.softmax(picked), 1e-5, f"weights, {rows} rows, {experts} experts, {chosen} chosen"
        )
        expected = group_by_expert(expert, experts)
        np.testing.assert_array_equal(start, expected[0])
        np.testing.assert_array_equal(order, expected[1])


def test_a_forced_expert_far_below_the_others_has_finite_weights(backend, rng):
    norm, router = norm_weight(rng, 64), linear(rng, 8, 64)
    residual, slot = normal(rng, 3, 64), np.zeros(3, np.int32)
    boost, rank = np.zeros((1, 8), np.float32), np.zeros((1, 8), np.int32)
    boost[0, 5], rank[0, 5] = -500, 1
    expert, weight, _, _ = gate(backend, residual, norm, router, 4, slot, boost, rank)
    assert (expert[:, 0] == 5).all()
    assert (weight[:, 0] == 0).all()
    assert_close(weight.sum(axis=1), np.ones(3), 1e-6, "sums of weights")


def test_vectors_are_added_to_the_rows_that_name_them(backend, rng):
    """Against the reference, and: rows of no slot keep every bit, whatever the others do."""
    for rows in (1, 5, 60):
        case = test_moe_down.random_case(rng, rows, 96, 64, 6, 4)
        h, expert, layer, weight, residual = case
        h = as_read(backend, h)
        slot, vectors = rng.integers(-1, 4, rows).astype(np.int32), normal(rng, 4, 96, scale=5)
        decoded = some_decoded(rng, rows)
        found = residual.copy()
        flat = np.ascontiguousarray(h.reshape(expert.size, -1))
        groups = group_by_expert(expert, len(layer[0]))
        arguments = (rows_for(backend, flat), None, None, *groups, *layer, np.ascontiguousarray(weight))
        backend.moe_down(*arguments, found, decoded, slot, vectors)
        plain = test_moe_down.native(backend, h, expert, layer, weight, residual, decoded=decoded)
        none = slot < 0
        assert_same_bits(found[none], plain[none], "rows of no slot")
        expected = plain.copy()
        expected[~none] += vectors[slot[~none]]
        assert_same_bits(found, expected, f"steered rows of {rows}, decoded {decoded}")
        exact = test_moe_down.reference(h.astype(np.float64), expert, layer, weight, residual)
        exact[~none] += vectors[slot[~none]]
        assert_close(found, exact, 2e-6, f"{rows} rows")


def test_neutral_controls_change_nothing(backend, rng):
    norm, router, residual = norm_weight(rng, 64), linear(rng, 16, 64), normal(rng, 9, 64)
    zero = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.int32)
    plain = gate(backend, residual, norm, router, 4)
    for a, b in zip(
        gate(backend, residual, norm, router, 4, np.zeros(9, np.int32), *zero), plain, strict=True
    ):
        np.testing.assert_array_equal(a, b)
