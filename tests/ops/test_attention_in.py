"""attention_in against the float64 reference: queries, and keys and values in their cache slots."""

import numpy as np
import pytest

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import empty, linear, multiple, norm_weight, normal
from tests.ops.numerics import piece, tolerance
from tests.ops.paging import HEAD_DIM, cache_dtype, paged_batch, random_sequences
from tests.reference import ops
from tests.reference.formats import bf16_to_float
from tests.reference.rope import yarn

ROPE = {
    "head_dim": HEAD_DIM,
    "rope_theta": 150000.0,
    "rope_factor": 32.0,
    "rope_beta_fast": 32.0,
    "rope_beta_slow": 1.0,
    "initial_context_length": 4096,
}
BF16_STEP = 2.0**-8


class Layer:
    """Random weights of one layer's q, k and v."""

    def __init__(self, rng, hidden, heads, kv_heads):
        self.norm = norm_weight(rng, hidden)
        self.eps = float(np.float32(rng.choice([1e-5, 1e-3])))
        self.heads = heads
        self.q = linear(rng, heads * HEAD_DIM, hidden)
        self.k = linear(rng, kv_heads * HEAD_DIM, hidden)
        self.v = linear(rng, kv_heads * HEAD_DIM, hidden)
        self.inv_freq, self.rope_scale = yarn(ROPE)

    def native(self, backend, residual, batch):
        queries = empty(len(residual), self.heads, HEAD_DIM)
        with batch.cache_of(backend) as cache:
            backend.attention_in(
                residual, self.norm, self.eps, *self.q, *self.k, *self.v, self.inv_freq, self.rope_scale,
                *batch.table, *cache, queries,
            )  # fmt: skip
        return queries

    def reference(self, residual, positions):
        q, k, v = (tuple(map(bf16_to_float, pair)) for pair in (self.q, self.k, self.v))
        residual = residual.astype(np.float64)
        return ops.attention_in(
            residual, bf16_to_float(self.norm), self.eps, q, k, v, positions, self.inv_freq, self.rope_scale
        )


def check(backend, rng, layer, hidden, sequences, kv_heads, page_size, dtype):
    dtype = cache_dtype(backend, dtype)
    batch = paged_batch(rng, sequences, kv_heads, page_size, dtype)
    untouched = batch.keys.copy(), batch.values.copy()
    rows = int(batch.row_start[-1])
    residual = normal(rng, rows, hidden, scale=rng.choice([0.02, 1, 50]))
    before = residual.copy()
    queries = layer.native(backend, residual, batch)
    what = (
        f"rows {rows}, hidden {hidden}, heads {layer.heads}/{kv_heads}, page {page_size}, {np.dtype(dtype)}"
    )

    positions = np.concatenate([batch.positions(s) for s in range(len(sequences))])
    expected_q, expected_k, expected_v = layer.reference(residual, positions)
    assert_close(queries, expected_q, tolerance(backend, 3e-6), f"queries, {what}")
    for s in range(len(sequences)):
        k, v = batch.read(s, batch.positions(s))
        allowed = tolerance(backend, 3e-6 if dtype == np.float32 else BF16_STEP, 2 * BF16_STEP)
        assert_close(k, expected_k[batch.rows(s)], allowed, f"keys of sequence {s}, {what}")
        assert_close(v, expected_v[batch.rows(s)], allowed, f"values of sequence {s}, {what}")
        for position in batch.positions(s):
            page, slot = batch.slot(s, position)
            batch.keys[page, :, :, slot] = untouched[0][page, :, :, slot]
            batch.values[page, :, slot] = untouched[1][page, :, slot]
    assert_same_bits(batch.keys, untouched[0], f"key slots of other tokens, {what}")
    assert_same_bits(batch.values, untouched[1], f"value slots of other tokens, {what}")
    assert_same_bits(residual, before, f"the residual stream, {what}")


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_matches_the_reference(backend, rng, dtype, page_size):
    for rows in (1, int(rng.integers(2, 12)), int(rng.integers(12, 131))):
        hidden, kv_heads = multiple(rng, 32, 10), int(rng.integers(1, 5))
        layer = Layer(rng, hidden, kv_heads * int(rng.integers(1, 5)), kv_heads)
        check(backend, rng, layer, hidden, random_sequences(rng, rows, 300), kv_heads, page_size, dtype)


def test_matches_the_reference_at_the_width_of_the_released_models(backend, rng):
    check(backend, rng, Layer(rng, 2880, 8, 2), 2880, [(0, 3), (70, 1)], 2, 32, np.float32)


def test_matches_the_reference_with_many_rows(backend, rng):
    hidden = multiple(rng, 32, 4)
    check(backend, rng, Layer(rng, hidden, 3, 1), hidden, [(9, 1), (0, 201)], 1, 32, np.float32)
    check(
        backend,
        rng,
        Layer(rng, hidden, 3, 1),
        hidden,
        [(int(n), 1) for n in rng.integers(0, 30, 70)],
        1,
        16,
        np.float32,
    )


def test_angles_stay_right_at_the_longest_context(backend, rng):
    layer = Layer(rng, 64, 2, 1)
    batch = paged_batch(rng, [(131_070, 2), (60_000, 1)], 1, 32, cache_dtype(backend), window=1)
    residual = normal(rng, 3, 64)
    queries = layer.native(backend, residual, batch)
    expected = layer.reference(residual, np.array([131_070, 131_071, 60_000]))[0]
    assert_close(
        queries, expected, tolerance(backend, 1e-5), "queries at positions 131,070, 131,071 and 60,000"
    )


def test_a_row_does_not_depend_on_its_batch(backend, rng):
    hidden, kv_heads = multiple(rng, 32, 8), 2
    layer = Layer(rng, hidden, 6, kv_heads)
    sequences = [(40, 1), (5, 1), (0, 203), (17, 9)]
    batch = paged_batch(rng, sequences, kv_heads, 16, cache_dtype(backend))
    residual = normal(rng, 214, hidden)
    queries = layer.native(backend, residual, batch)
    keys, values = batch.keys.copy(), batch.values.copy()
    for s, (_, new) in enumerate(sequences):
        first = 0
        while first < new:
            count = piece(rng, backend, new - first)
            rows = slice(batch.rows(s).start + first, batch.rows(s).start + first + count)
            alone = layer.native(backend, residual[rows].copy(), batch.only(s, first, count))
            assert_same_bits(
                alone, queries[rows], f"queries of {count} rows of sequence {s} without the others"
            )
            first += count
    assert_same_bits(batch.keys, keys, "keys written in pieces")
    assert_same_bits(batch.values, values, "values written in pieces")


def test_nan_stays_in_its_row(backend, rng):
    layer = Layer(rng, 96, 2, 1)
    batch = paged_batch(rng, [(3, 4)], 1, 16, cache_dtype(backend))
    residual = normal(rng, 4, 96)
    residual[2, 95] = np.nan
    queries = layer.native(backend, residual, batch)
    assert np.isnan(queries).all(axis=(1, 2)).tolist() == [False, False, True, False]
    assert np.isfinite(np.delete(queries, 2, axis=0)).all()
