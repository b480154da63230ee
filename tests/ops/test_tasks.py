"""The same bits however an op is cut into tasks.

Few rows meet long tasks, and how long depends on the number of threads: one thread has eight tasks an op,
sixteen have one for each tile. Oracle: each other; the ops' own tests compare with the reference.
"""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native import _native

from tests.compare import assert_same_bits
from tests.ops.inputs import bf16, choose_experts, empty, group_by_expert, linear, mxfp4, norm_weight, normal
from tests.ops.paging import HEAD_DIM, paged_batch
from tests.ops.test_attention_in import Layer
from tests.ops.test_lora import Adapters
from tests.reference.formats import float_to_q8

ROWS = (1, 2, 3, 4)  # the last are too many for long tasks


def same_whatever_the_threads(isa, dense_dtype, run, what):
    """run(backend): a list of arrays."""
    one, many = (
        run(_native.Backend(device="cpu", threads=threads, isa=isa, dense_dtype=dense_dtype))
        for threads in (1, 16)
    )
    for place, (found, expected) in enumerate(zip(one, many, strict=True)):
        assert not np.isnan(found).any(), f"{what}: output {place} is not all there"
        assert_same_bits(found, expected, f"{what}, output {place}")


@pytest.mark.parametrize("dense_dtype", ["bf16", "packed", "q8"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(30, 3), (40, 1), (23, 1), (64, 8)])
def test_attention_in(isa, rng, heads, kv_heads, dense_dtype):
    hidden = 96
    layer = Layer(rng, hidden, heads, kv_heads)
    for rows in ROWS:
        batch = paged_batch(rng, [(5, 1)] * rows, kv_heads, 16, np.float32)
        residual = normal(rng, rows, hidden)
        outs = [heads * HEAD_DIM, kv_heads * HEAD_DIM, kv_heads * HEAD_DIM]
        adapters = [Adapters(rng, rows, hidden, out).argument for out in outs]

        def run(backend, rows=rows, batch=batch, residual=residual, adapters=adapters):
            queries, keys, values = empty(rows, heads, HEAD_DIM), batch.keys.copy(), batch.values.copy()
            backend.attention_in(
                residual, layer.norm, layer.eps, *layer.q, *layer.k, *layer.v, layer.inv_freq,
                layer.rope_scale, *batch.table, keys, values, queries, *adapters,
            )  # fmt: skip
            new = [batch.slot(row, 5) for row in range(rows)]
            return [queries, *(keys[page, :, :, slot] for page, slot in new),
                    *(values[page, :, slot] for page, slot in new)]  # fmt: skip

        same_whatever_the_threads(isa, dense_dtype, run, f"{rows} rows, {heads} heads of {kv_heads}")


@pytest.mark.parametrize("dense_dtype", ["bf16", "packed", "q8"])
def test_attention_out(isa, rng, dense_dtype):
    hidden, width = 32 * 37, 192
    weight, bias = linear(rng, hidden, width)
    for rows in ROWS:
        attended, residual = normal(rng, rows, width), normal(rng, rows, hidden)
        adapter = Adapters(rng, rows, width, hidden).argument

        def run(backend, rows=rows, attended=attended, residual=residual, adapter=adapter):
            found = residual.copy()
            backend.attention_out(attended, weight, bias, found, rows, adapter)
            return [found]

        same_whatever_the_threads(isa, dense_dtype, run, f"{rows} rows")


@pytest.mark.parametrize("dense_dtype", ["bf16", "packed", "q8"])
@pytest.mark.parametrize("screen", [False, True])
def test_unembed(isa, rng, screen, dense_dtype):
    hidden, vocab = 160, 64 * 37 + 17
    lm_head, norm = bf16(rng, vocab, hidden), norm_weight(rng, hidden)
    for rows in ROWS:
        residual, order = normal(rng, rows, hidden), rng.permutation(rows).astype(np.int32)
        lora = None if screen else Adapters(rng, rows, hidden, vocab, products=rows, owner=order).argument

        def run(backend, rows=rows, residual=residual, order=order, lora=lora):
            logits = empty(rows, vocab)
            backend.unembed(residual, order, norm, 1e-5, lm_head, logits, lora=lora, screen=screen)
            return [logits]

        same_whatever_the_threads(isa, dense_dtype, run, f"{rows} rows, bounds {screen}")


@pytest.mark.parametrize("bits", ["float", "8 bits"])
@pytest.mark.parametrize(("experts", "chosen"), [(5, 4), (1, 1), (40, 4)])
def test_experts(isa, rng, experts, chosen, bits):
    """moe_up and moe_down, with adapters, and steering after them."""
    width, tiles = 64, 19
    up, down = mxfp4(rng, experts, 2 * 32 * tiles, width), mxfp4(rng, experts, 32 * tiles, width)
    for rows in ROWS:
        expert = choose_experts(rng, rows, experts, chosen)
        groups, owner = group_by_expert(expert, experts), np.repeat(np.arange(rows), chosen)
        adapters = [
            Adapters(rng, rows, width, len(layer[0][0]), experts=experts, products=expert.size, owner=owner)
            for layer in (up, down)
        ]
        x, h = normal(rng, rows, width), normal(rng, expert.size, width)
        routing, residual = rng.random((rows, chosen)).astype(np.float32), normal(rng, rows, 32 * tiles)
        slot, steering = rng.integers(-1, 2, rows).astype(np.int32), normal(rng, 2, 32 * tiles)

        def run(
            backend, rows=rows, groups=groups, adapters=adapters, x=x, h=h, routing=routing,
            residual=residual, slot=slot, steering=steering,
        ):  # fmt: skip
            found = residual.copy()
            if bits == "float":
                out = [empty(len(h), 32 * tiles)]
                inputs, outputs, inner = (x, None, None), (*out, None, None), (h, None, None)
            else:
                out = [empty(len(h), 32 * tiles, dtype=np.int8), empty(len(h), tiles)]
                inputs, outputs, inner = (None, *float_to_q8(x)), (None, *out), (None, *float_to_q8(h))
            backend.moe_up(*inputs, *groups, *up, 7.0, chosen, *outputs, rows, adapters[0].argument)
            backend.moe_down(
                *inner, *groups, *down, routing, found, rows, slot, steering, adapters[1].argument
            )
            return [*out, found]

        same_whatever_the_threads(isa, "bf16", run, f"{rows} rows, {experts} experts")
