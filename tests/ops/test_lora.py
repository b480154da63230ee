"""Adapters: lora's products, and what each op adds for them.

Oracle: tests/reference, float64; of rows without an adapter: every bit.
"""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.compare import assert_close, assert_same_bits
from tests.ops import test_attention_in, test_moe_down, test_moe_up
from tests.ops.inputs import (
    bf16,
    choose_experts,
    empty,
    group_by_expert,
    linear,
    mxfp4,
    norm_weight,
    normal,
)
from tests.ops.numerics import as_read, is_exact, rows_dtype, rows_for, rows_from, some_decoded, tolerance
from tests.ops.paging import HEAD_DIM, cache_dtype, paged_batch, random_sequences
from tests.reference import ops
from tests.reference.formats import bf16_to_float, float_to_q8, mxfp4_to_float, q8_to_float

SLOTS = 3


class Adapters:
    """Random ones of one matrix: slot 1 has none. `slot` [rows], `product` with NaN where nobody may look."""

    def __init__(self, rng, rows, width, out, *, experts=0, products=None, owner=None):
        parts = (experts,) if experts else ()
        ranks = [int(rank) for rank in rng.integers(1, 20, SLOTS)]
        self.stride = max(ranks) + int(rng.integers(0, 3))
        scale = width**-0.5
        self.a = [normal(rng, *parts, rank, width, scale=scale) for rank in ranks]
        self.b = [normal(rng, *parts, rank, out, scale=0.5) for rank in ranks]
        self.a[1] = self.b[1] = None
        self.slot = rng.integers(-1, SLOTS, rows).astype(np.int32)
        products = rows if products is None else products
        self.owner = np.arange(products) if owner is None else owner
        self.product = empty(products, self.stride)
        self.adapted = np.array([self.slot[row] in (0, 2) for row in range(rows)])
        for n, row in enumerate(self.owner):
            if self.adapted[row]:
                rank = ranks[self.slot[row]]
                self.product[n, :rank] = normal(rng, rank)
        self.ranks = ranks

    @property
    def argument(self):
        return self.slot, self.product, self.b

    def deltas(self, expert=None):
        """float64 [products, out]"""
        found = np.zeros((len(self.product), self.b[0].shape[-1]))
        for n, row in enumerate(self.owner):
            if self.adapted[row]:
                b = self.b[self.slot[row]].astype(np.float64)
                b = b if expert is None else b[expert[n]]
                found[n] = self.product[n, : len(b)].astype(np.float64) @ b
        return found


def products(x, adapters, target, expert=None):
    """float64 [products, stride] of one target's A; NaN where nothing is computed. x: [products, width]"""
    found = np.full((len(adapters.owner), adapters.stride), np.nan)
    for n, row in enumerate(adapters.owner):
        if adapters.adapted[row]:
            a = target[adapters.slot[row]].astype(np.float64)
            a = a if expert is None else a[expert[n]]
            found[n, : len(a)] = a @ x[n]
    return found


def normed(residual, norm):
    return ops.rms_norm(residual.astype(np.float64), bf16_to_float(norm), float(np.float32(1e-5)))


@pytest.mark.parametrize("targets", [1, 3])
def test_products_of_normed_rows(backend, rng, targets):
    for rows, width in ((1, 64), (9, 2880), (int(rng.integers(2, 60)), 32 * int(rng.integers(1, 9)))):
        residual, norm = normal(rng, rows, width, scale=5), norm_weight(rng, width)
        all_of = [Adapters(rng, rows, width, 8) for _ in range(targets)]
        for each in all_of[1:]:
            each.slot, each.adapted = all_of[0].slot, all_of[0].adapted
        out = [empty(rows, each.stride) for each in all_of]
        backend.lora(residual, None, None, norm, 1e-5, all_of[0].slot,
                     [(each.a, to) for each, to in zip(all_of, out, strict=True)])  # fmt: skip
        for each, to in zip(all_of, out, strict=True):
            expected = products(normed(residual, norm), each, each.a)
            assert_close(to, expected, 3e-6, f"{rows} rows of {width}, ranks {each.ranks}")


def test_products_of_rows_as_they_are(backend, rng):
    rows, width = int(rng.integers(1, 40)), 64 * int(rng.integers(1, 9))
    x, adapters = normal(rng, rows, width, scale=3), Adapters(rng, rows, width, 8)
    out = empty(rows, adapters.stride)
    backend.lora(x, None, None, None, 0.0, adapters.slot, [(adapters.a, out)])
    assert_close(out, products(x, adapters, adapters.a), 3e-6, f"{rows} rows of {width}")


def test_products_of_some_rows(backend, rng):
    """As for logits: rows in any order, some of them twice."""
    rows, width = 12, 96
    residual, norm, wanted = normal(rng, rows, width), norm_weight(rng, width), rng.integers(0, rows, 17)
    adapters = Adapters(rng, rows, width, 8, products=17, owner=wanted)
    out = empty(17, adapters.stride)
    backend.lora(
        residual, None, None, norm, 1e-5, adapters.slot, [(adapters.a, out)], wanted.astype(np.int32)
    )
    assert_close(out, products(normed(residual, norm)[wanted], adapters, adapters.a), 3e-6, "17 of 12 rows")


@pytest.mark.parametrize("form", ["rows with a norm", "assignments", "8-bit assignments"])
def test_products_of_experts_own_matrices(backend, rng, form):
    rows, width, experts, chosen = int(rng.integers(1, 30)), 32 * int(rng.integers(1, 9)), 6, 4
    expert = choose_experts(rng, rows, experts, chosen)
    owner = np.repeat(np.arange(rows), chosen)
    adapters = Adapters(rng, rows, width, 8, experts=experts, products=rows * chosen, owner=owner)
    out, target = empty(rows * chosen, adapters.stride), adapters.a
    more = {"expert": expert, "experts": experts, "by_assignment": form != "rows with a norm"}
    if form == "rows with a norm":
        residual, norm = normal(rng, rows, width), norm_weight(rng, width)
        backend.lora(residual, None, None, norm, 1e-5, adapters.slot, [(target, out)], **more)
        x = normed(residual, norm)[owner]
    elif form == "assignments" or not is_exact(backend):
        x = as_read(backend, normal(rng, rows * chosen, width))
        backend.lora(rows_for(backend, x), None, None, None, 0.0, adapters.slot, [(target, out)], **more)
    else:
        q8, scale = float_to_q8(normal(rng, rows * chosen, width))
        backend.lora(None, q8, scale, None, 0.0, adapters.slot, [(target, out)], **more)
        x = q8_to_float(q8, scale)
    expected = products(x, adapters, target, expert.reshape(-1))
    assert_close(out, expected, 3e-6, f"{form}: {rows} rows of {width}")


def test_a_product_does_not_depend_on_its_batch(backend, rng):
    residual, norm = normal(rng, 40, 96), norm_weight(rng, 96)
    adapters = Adapters(rng, 40, 96, 8)
    together = empty(40, adapters.stride)
    backend.lora(residual, None, None, norm, 1e-5, adapters.slot, [(adapters.a, together)])
    for row in rng.permutation(40)[:8]:
        alone, one = empty(1, adapters.stride), slice(row, row + 1)
        backend.lora(
            residual[one].copy(), None, None, norm, 1e-5, adapters.slot[one].copy(), [(adapters.a, alone)]
        )
        assert_same_bits(alone, together[one], f"row {row} alone")


def test_attention_in_adds_them_before_it_rotates(backend, rng):
    hidden, kv_heads = 96, 2
    for rows in (1, 7, 50):
        layer = test_attention_in.Layer(rng, hidden, 4, kv_heads)
        batch = paged_batch(rng, random_sequences(rng, rows, 80), kv_heads, 16, cache_dtype(backend))
        rows = int(batch.row_start[-1])
        residual = normal(rng, rows, hidden)
        outs = [layer.heads * HEAD_DIM, kv_heads * HEAD_DIM, kv_heads * HEAD_DIM]
        each = [Adapters(rng, rows, hidden, out) for out in outs]
        for other in each[1:]:
            if rng.random() < 0.5:  # of one row, some matrices may have an adapter and some none
                other.slot, other.adapted = other.slot * 0 - 1, other.adapted & False
        queries = empty(rows, layer.heads, HEAD_DIM)
        with batch.cache_of(backend) as cache:
            backend.attention_in(
                residual, layer.norm, layer.eps, *layer.q, *layer.k, *layer.v, layer.inv_freq,
                layer.rope_scale, *batch.table, *cache, queries, *(adapters.argument for adapters in each),
            )  # fmt: skip
        positions = np.concatenate([batch.positions(s) for s in range(len(batch.row_start) - 1)])
        matrices = [
            (bf16_to_float(weight), bf16_to_float(bias) + adapters.deltas())
            for (weight, bias), adapters in zip((layer.q, layer.k, layer.v), each, strict=True)
        ]
        norm = bf16_to_float(layer.norm)
        expected_q, expected_k, expected_v = ops.attention_in(
            residual.astype(np.float64),
            norm,
            layer.eps,
            *matrices,
            positions,
            layer.inv_freq,
            layer.rope_scale,
        )
        assert_close(queries, expected_q, tolerance(backend, 3e-6), f"queries of {rows} rows")
        for s in range(len(batch.row_start) - 1):
            k, v = batch.read(s, batch.positions(s))
            allowed = tolerance(backend, 2.0**-8, 2.0**-7) if cache_dtype(backend) == np.uint16 else 3e-6
            assert_close(k, expected_k[batch.rows(s)], allowed, f"keys of sequence {s}")
            assert_close(v, expected_v[batch.rows(s)], allowed, f"values of sequence {s}")
        plain = layer.native(backend, residual, batch)
        none = ~each[0].adapted
        assert_same_bits(queries[none], plain[none], "queries of rows without")


def test_attention_out_adds_them(backend, rng):
    for rows in (1, 6, 60):
        hidden, width = 96, 128
        weight, bias = linear(rng, hidden, width)
        attended, residual = as_read(backend, normal(rng, rows, width)), normal(rng, rows, hidden)
        adapters, decoded = Adapters(rng, rows, width, hidden), some_decoded(rng, rows)
        found, plain = residual.copy(), residual.copy()
        backend.attention_out(attended, weight, bias, found, decoded, adapters.argument)
        backend.attention_out(attended, weight, bias, plain, decoded)
        projected = ops.attention_out(attended.astype(np.float64), bf16_to_float(weight), bf16_to_float(bias))
        assert_close(found, residual + projected + adapters.deltas(), 3e-6, f"{rows} rows, decoded {decoded}")
        assert_same_bits(found[~adapters.adapted], plain[~adapters.adapted], "rows without")


def gate(backend, residual, norm, router, *more):
    """Expert ids and weights [rows, 4]."""
    rows, hidden = residual.shape
    expert, weight = empty(rows, 4, dtype=np.int32), empty(rows, 4)
    groups = empty(len(router[0]) + 1, dtype=np.int32), empty(4 * rows, dtype=np.int32)
    to = empty(rows, hidden, dtype=rows_dtype(backend))
    backend.moe_gate(residual, norm, 1e-5, *router, 4, to, None, None, expert, weight, *groups, *more)
    return expert, weight


def test_moe_gate_adds_them_to_the_logits(backend, rng):
    for rows in (1, 6, 40):
        experts, hidden = int(rng.integers(4, 129)), 96
        norm, router = norm_weight(rng, hidden), linear(rng, experts, hidden)
        residual, adapters = normal(rng, rows, hidden), Adapters(rng, rows, hidden, experts)
        expert, weight = gate(backend, residual, norm, router, None, None, None, adapters.argument)
        plain = gate(backend, residual, norm, router)
        logits = ops.router_logits(normed(residual, norm), *map(bf16_to_float, router)) + adapters.deltas()
        picked = np.take_along_axis(logits, expert, axis=1)
        others = logits.copy()
        np.put_along_axis(others, expert, -np.inf, axis=1)
        assert (picked.min(axis=1) >= others.max(axis=1) - 1e-4).all()
        assert_close(weight, ops.softmax(picked), 1e-5, f"weights, {rows} rows, {experts} experts")
        none = ~adapters.adapted
        np.testing.assert_array_equal(expert[none], plain[0][none])
        assert_same_bits(weight[none], plain[1][none], "rows without")


def experts_case(rng, rows, width, out, experts=6, chosen=4):
    expert = choose_experts(rng, rows, experts, chosen)
    owner = np.repeat(np.arange(rows), chosen)
    return expert, Adapters(rng, rows, width, out, experts=experts, products=rows * chosen, owner=owner)


def test_moe_up_adds_them_before_the_swiglu(backend, rng):
    for rows in (1, 7, 60):
        hidden, inner = 64, 64
        layer = mxfp4(rng, 6, 2 * inner, hidden)
        expert, adapters = experts_case(rng, rows, hidden, 2 * inner)
        x, decoded = as_read(backend, normal(rng, rows, hidden)), some_decoded(rng, rows)
        out = empty(expert.size, inner, dtype=rows_dtype(backend))
        backend.moe_up(
            rows_for(backend, x), None, None, *group_by_expert(expert, 6), *layer, 7.0, 4, out, None, None,
            decoded, adapters.argument,
        )  # fmt: skip
        found = rows_from(backend, out)
        weight, bias = mxfp4_to_float(*layer[:2]), bf16_to_float(layer[2])
        deltas, flat = adapters.deltas(expert.reshape(-1)), expert.reshape(-1)
        projected = np.stack([weight[e] @ x[n // 4] + bias[e] + deltas[n] for n, e in enumerate(flat)])
        expected = ops.swiglu(projected[:, 0::2], projected[:, 1::2], 7.0)
        assert_close(found, expected, tolerance(backend, 5e-6), f"{rows} rows, decoded {decoded}")
        plain = test_moe_up.native(backend, x, expert, layer, decoded=decoded).reshape(found.shape)
        none = ~adapters.adapted[adapters.owner]
        assert_same_bits(found[none], plain[none], "assignments of rows without")


def test_moe_down_adds_them_under_the_routing_weight(backend, rng):
    for rows in (1, 7, 60):
        h, expert, layer, weight, residual = test_moe_down.random_case(rng, rows, 96, 64, 6, 4)
        owner = np.repeat(np.arange(rows), 4)
        adapters = Adapters(rng, rows, 64, 96, experts=6, products=4 * rows, owner=owner)
        h, decoded = as_read(backend, h), some_decoded(rng, rows)
        found = residual.copy()
        flat = np.ascontiguousarray(h.reshape(expert.size, -1))
        backend.moe_down(
            rows_for(backend, flat), None, None, *group_by_expert(expert, 6), *layer,
            np.ascontiguousarray(weight), found, decoded, None, None, adapters.argument,
        )  # fmt: skip
        deltas = adapters.deltas(expert.reshape(-1)) * weight.reshape(-1, 1)
        exact = test_moe_down.reference(h.astype(np.float64), expert, layer, weight, residual)
        exact = exact + deltas.reshape(rows, 4, -1).sum(axis=1)
        assert_close(found, exact, 3e-6, f"{rows} rows, decoded {decoded}")
        plain = test_moe_down.native(backend, h, expert, layer, weight, residual, decoded=decoded)
        assert_same_bits(found[~adapters.adapted], plain[~adapters.adapted], "rows without")


def test_unembed_adds_them(backend, rng):
    hidden, vocab, rows = 96, 131, 14
    norm, lm_head, residual = (
        norm_weight(rng, hidden),
        bf16(rng, vocab, hidden, scale=0.1),
        normal(rng, rows, hidden),
    )
    wanted = rng.integers(0, rows, 21).astype(np.int32)
    adapters = Adapters(rng, rows, hidden, vocab, products=21, owner=wanted)
    logits, plain = empty(21, vocab), empty(21, vocab)
    backend.unembed(residual, wanted, norm, 1e-5, lm_head, logits, adapters.argument)
    backend.unembed(residual, wanted, norm, 1e-5, lm_head, plain)
    expected = ops.unembed(
        residual[wanted].astype(np.float64), bf16_to_float(norm), 1e-5, bf16_to_float(lm_head)
    )
    assert_close(logits, expected + adapters.deltas(), tolerance(backend, 3e-6), "21 rows of 14")
    none = ~adapters.adapted[wanted]
    assert_same_bits(logits[none], plain[none], "rows without")


def test_arguments_that_do_not_fit_are_refused(cpu, rng):
    x, slot, out = normal(rng, 3, 64), np.int32([0, -1, 0]), empty(3, 4)
    a = normal(rng, 4, 64)

    def lora(x=x, slot=slot, targets=((a,), out), **more):
        cpu.lora(x, None, None, None, 0.0, slot, [([*targets[0]], targets[1])], **more)

    lora()
    for given, words in [
        ({"slot": np.int32([0, 1, 0])}, "slot 1 is named, targets.0. has matrices of 1 slots"),
        ({"targets": ((a[:, :32].copy(),), out)}, r"a has shape \(4, 32\), expected \(4, 64\)"),
        ({"targets": ((normal(rng, 5, 64),), out)}, "has rank 5, product has room for 4"),
        ({"targets": ((a[:0],), out)}, "has rank 0"),
        ({"expert": np.int32([[0], [0], [0]])}, "experts is 0, expert is given"),
        ({"rows": np.int32([3])}, r"rows\[0\] is 3"),
        ({"x": normal(rng, 3, 33)}, "input has rows of 33"),
    ]:
        with pytest.raises(GptossError, match=words):
            lora(**given)
    weight, bias = linear(rng, 32, 64)
    with pytest.raises(GptossError, match=r"lora's slot\[0\] is 1, expected -1 to 0"):
        cpu.attention_out(
            x, weight, bias, empty(3, 32), None, (np.int32([1, 0, 0]), out, [normal(rng, 4, 32)])
        )
    with pytest.raises(GptossError, match=r"lora's b has shape \(4, 31\)"):
        cpu.attention_out(x, weight, bias, empty(3, 32), None, (slot, out, [normal(rng, 4, 31)]))
