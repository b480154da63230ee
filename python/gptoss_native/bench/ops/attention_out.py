"""Cases of attention_out."""

import numpy as np

from ..cases import HEAD_DIM, Case, copies, decode_rows, dense_kind, linear, matrix_bytes, values


def cases(backend, rng, rows, model):
    hidden, width = model.hidden_size, model.num_attention_heads * HEAD_DIM
    given, residual = values(rng, rows, width), np.zeros((rows, hidden), np.float32)

    def call():
        weight, bias = linear(rng, hidden, width)
        return lambda: backend.attention_out(given, weight, bias, residual, decode_rows(rows))

    weights = matrix_bytes(backend, hidden, width)
    moved = weights + given.nbytes + 2 * residual.nbytes
    calls = [call() for _ in range(copies(backend, weights))]
    yield Case("", calls, moved, 2 * rows * hidden * width, dense_kind(backend))
