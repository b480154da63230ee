"""Cases of attention_in."""

import numpy as np

from ..cases import HEAD_DIM, Case, batch, bf16, copies, dense_kind, linear, matrix_bytes, page_pool, values


def cases(backend, rng, rows, model):
    hidden, heads, kv_heads = model.hidden_size, model.num_attention_heads, model.num_key_value_heads
    out = (heads + 2 * kv_heads) * HEAD_DIM
    residual, norm = values(rng, rows, hidden), bf16(rng, hidden)
    inv_freq = (150_000 ** -np.linspace(0, 1, HEAD_DIM // 2)).astype(np.float32)
    row_start, context, pages = batch(rows, 0)
    dtype = np.float32 if backend.has_exact else np.uint16
    cache = page_pool(backend, lambda *shape: np.zeros(shape, dtype), pages.size, kv_heads)
    queries = np.empty((rows, heads, HEAD_DIM), np.float32)

    def call():
        q, k, v = (linear(rng, n * HEAD_DIM, hidden) for n in (heads, kv_heads, kv_heads))
        return lambda: backend.attention_in(
            residual, norm, 1e-5, *q, *k, *v, inv_freq, 1.35, row_start, context, pages, *cache, queries
        )

    weights = matrix_bytes(backend, out, hidden)
    moved = residual.nbytes + queries.nbytes + rows * 2 * kv_heads * HEAD_DIM * np.dtype(dtype).itemsize
    calls = [call() for _ in range(copies(backend, weights))]
    yield Case("", calls, weights + moved, 2 * rows * out * hidden, dense_kind(backend))
