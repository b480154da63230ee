"""paged_attention against the float64 reference, over a cache whose unreadable slots are NaN."""

import numpy as np
import pytest

from tests.compare import assert_same_bits
from tests.ops.inputs import bf16, empty, normal
from tests.ops.numerics import as_read, assert_attends, is_exact, piece
from tests.ops.paging import HEAD_DIM, cache_dtype, paged_batch, random_sequences
from tests.reference.formats import bf16_to_float, float_to_bf16


def fill(rng, batch, kv_heads, scale=1.0):
    """Writes keys and values to every position of every page that is held."""
    for s in range(len(batch.context)):
        for position in range(batch.positions(s)[-1] + 1):
            if batch.slot(s, position)[0] >= 0:
                k = normal(rng, kv_heads, HEAD_DIM, scale=scale)
                batch.write(s, position, k, normal(rng, kv_heads, HEAD_DIM))


def nan_of(cache):
    return np.uint16(0x7FC0) if cache.dtype == np.uint16 else np.float32(np.nan)


def native(backend, queries, batch, sinks, window):
    output = empty(*queries.shape)
    with batch.cache_of(backend) as cache:
        backend.paged_attention(queries, *cache, sinks, *batch.table, window, output)
    return output


def assert_batch_attends(backend, output, queries, batch, sinks, window, exact, what):
    """Every sequence of the batch against the reference."""
    for s in range(len(batch.context)):
        k, v = batch.read(s, range(batch.positions(s)[-1] + 1))
        given = queries[batch.rows(s)].astype(np.float64), k, v, bf16_to_float(sinks), window
        assert_attends(backend, output[batch.rows(s)], *given, exact, f"{what}, sequence {s}")


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("page_size", [16, 32, 48, 64])
@pytest.mark.parametrize("windowed", [False, True])
def test_matches_the_reference(backend, rng, dtype, page_size, windowed):
    for rows in (1, int(rng.integers(2, 40)), 130):
        kv_heads = int(rng.integers(1, 9)) if rows < 10 else int(rng.integers(1, 3))
        heads = kv_heads * int(rng.integers(1, 9))
        window = int(rng.choice([1, 7, 16, 33, 128, 1000])) if windowed else 0
        batch = paged_batch(
            rng, random_sequences(rng, rows, 200), kv_heads, page_size, cache_dtype(backend, dtype), window
        )
        fill(rng, batch, kv_heads)
        queries, sinks = (
            as_read(backend, normal(rng, rows, heads, HEAD_DIM, scale=2)),
            bf16(rng, heads, scale=2),
        )
        cache = batch.keys.copy(), batch.values.copy()
        what = f"rows {rows}, heads {heads}/{kv_heads}, window {window}, page {page_size}, {np.dtype(dtype)}"
        output = native(backend, queries, batch, sinks, window)
        assert_batch_attends(backend, output, queries, batch, sinks, window, 3e-6, what)
        assert_same_bits(batch.keys, cache[0], f"keys, {what}")
        assert_same_bits(batch.values, cache[1], f"values, {what}")


@pytest.mark.parametrize("context", [4097, 9000])
def test_long_contexts_are_read_whole(backend, rng, context):
    batch = paged_batch(rng, [(context - 1, 1), (0, 1)], 1, 64, cache_dtype(backend))
    fill(rng, batch, 1, scale=0.2)
    queries, sinks = as_read(backend, normal(rng, 2, 2, HEAD_DIM, scale=0.2)), bf16(rng, 2)
    output = native(backend, queries, batch, sinks, 0)
    # The mean of more values is smaller beside the roundings of their sum; a page left out makes 1e-2.
    allowed = 5e-6 if context < 9000 else 2e-5
    assert_batch_attends(backend, output, queries, batch, sinks, 0, allowed, f"context {context}")


@pytest.mark.parametrize("window", [0, 20])
def test_a_row_does_not_depend_on_its_batch_or_chunk(backend, rng, window):
    sequences = [(250, 1), (3, 1), (600, 1), (0, 37), (90, 14)]
    batch = paged_batch(rng, sequences, 2, 16, cache_dtype(backend), window)
    fill(rng, batch, 2)
    queries, sinks = as_read(backend, normal(rng, 54, 6, HEAD_DIM, scale=2)), bf16(rng, 6)
    output = native(backend, queries, batch, sinks, window)
    for s, (_, new) in enumerate(sequences):
        for first in range(max(1, new - 1)):
            count = piece(rng, backend, new - first)
            rows = slice(batch.rows(s).start + first, batch.rows(s).start + first + count)
            alone = native(backend, queries[rows].copy(), batch.only(s, first, count), sinks, window)
            assert_same_bits(
                alone, output[rows], f"{count} rows from {first} of sequence {s}, window {window}"
            )


@pytest.mark.parametrize("window", [0, 24])
def test_what_lies_outside_a_rows_view_is_not_read(backend, rng, window):
    """Later positions and, in held pages, positions older than the window: huge or NaN changes nothing."""
    batch = paged_batch(rng, [(60, 1), (30, 6)], 1, 32, cache_dtype(backend), window)
    fill(rng, batch, 1)
    queries, sinks = as_read(backend, normal(rng, 7, 4, HEAD_DIM)), bf16(rng, 4)
    clean = native(backend, queries, batch, sinks, window)
    for poison in (1e30, np.inf, np.nan):
        for s in range(2):
            last = batch.positions(s)[-1]
            oldest = batch.context[s] - window + 1 if window else 0
            for position in [*range(oldest), *range(last + 1, -(-(last + 1) // 32) * 32)]:
                if batch.slot(s, position)[0] >= 0:
                    batch.write(s, position, np.full((1, HEAD_DIM), poison), np.full((1, HEAD_DIM), poison))
        assert_same_bits(
            native(backend, queries, batch, sinks, window), clean, f"poison {poison}, window {window}"
        )


@pytest.mark.parametrize("sink", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_sinks_from_negligible_to_dominating(backend, rng, sink):
    batch = paged_batch(rng, [(100, 3)], 2, 32, cache_dtype(backend))
    fill(rng, batch, 2)
    queries, sinks = as_read(backend, normal(rng, 3, 8, HEAD_DIM)), float_to_bf16(np.full(8, sink))
    sinks[1::2] = bf16(rng, 4)
    output = native(backend, queries, batch, sinks, 0)
    for first, exact in ((1, 3e-6), (0, 2e-5)):
        given = output[:, first::2], queries[:, first::2], batch, sinks[first::2], 0
        assert_batch_attends(backend, *given, exact, f"heads from {first} on, sink {sink}")


def test_large_logits(backend, rng):
    """Integer queries and keys keep the logits exact, so that only the softmax is in question."""
    batch = paged_batch(rng, [(64, 5)], 1, 16, cache_dtype(backend))
    for position in range(69):
        k = rng.integers(-40, 41, (1, HEAD_DIM))
        batch.write(0, position, k, normal(rng, 1, HEAD_DIM))
    queries = rng.integers(-40, 41, (5, 3, HEAD_DIM)).astype(np.float32)
    sinks = float_to_bf16(np.array([0, 3000, -3000]))
    output = native(backend, queries, batch, sinks, 0)
    assert_batch_attends(backend, output, queries, batch, sinks, 0, 3e-6, "logits of thousands")


@pytest.mark.parametrize("kind", ["query", "key", "value"])
def test_nan_reaches_exactly_the_rows_that_see_it(backend, rng, kind):
    batch = paged_batch(rng, [(10, 30)], 2, 16, cache_dtype(backend))
    fill(rng, batch, 2)
    queries, sinks = as_read(backend, normal(rng, 30, 4, HEAD_DIM)), bf16(rng, 4)
    window, position = 8, 20
    page, slot = batch.slot(0, position)
    if kind == "query":
        queries[position - 10, 3, 63] = np.nan
    elif kind == "key":
        batch.keys[page, 1, 5, slot] = nan_of(batch.keys)
    else:
        batch.values[page, 1, slot, :] = nan_of(batch.values)
    output = native(backend, queries, batch, sinks, window)
    expected = np.zeros((30, 4), bool)
    if kind == "query":
        expected[10, 3] = True
    else:
        expected[10:18, 2:] = True
    for found in (np.isnan(output).all(axis=2), np.isnan(output).any(axis=2)):
        if kind == "value" and not is_exact(backend):
            # Tensor cores multiply a weight of zero by it, so other rows of the same tile get it too.
            found[:, 2:] &= expected[:, 2:]
        assert (found == expected).all(), f"NaN in a {kind}"
