"""attention_in: python -m bench.ops.attention_in"""

import numpy as np

from bench.ops.harness import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, Case, bf16, copies, linear, run, values

PAGE = 32


def cases(backend, rng, rows):
    out = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    read = 2 * out * HIDDEN
    residual, norm = values(rng, rows, HIDDEN), bf16(rng, HIDDEN)
    inv_freq = (150_000 ** -np.linspace(0, 1, HEAD_DIM // 2)).astype(np.float32)
    pages = np.arange(-(-rows // PAGE), dtype=np.int32)[None]
    keys = np.zeros((pages.size, KV_HEADS, HEAD_DIM, PAGE), np.float32)
    value_cache = np.zeros((pages.size, KV_HEADS, PAGE, HEAD_DIM), np.float32)
    batch = np.array([0, rows], np.int32), np.zeros(1, np.int32), pages, keys, value_cache
    queries = np.empty((rows, HEADS, HEAD_DIM), np.float32)

    def call():
        q, k, v = (linear(rng, heads * HEAD_DIM, HIDDEN) for heads in (HEADS, KV_HEADS, KV_HEADS))
        return lambda: backend.attention_in(residual, norm, 1e-5, *q, *k, *v, inv_freq, 1.35, *batch, queries)

    yield Case("", [call() for _ in range(copies(read))], read, 2 * rows * out * HIDDEN)


if __name__ == "__main__":
    run({"attention_in": cases}, __doc__)
