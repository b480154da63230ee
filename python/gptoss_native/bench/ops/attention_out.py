"""Cases of attention_out."""

import numpy as np

from ..cases import HEAD_DIM, Case, copies, decode_rows, linear, values


def cases(backend, rng, rows, model):
    hidden, width = model.hidden_size, model.num_attention_heads * HEAD_DIM
    given, residual = values(rng, rows, width), np.zeros((rows, hidden), np.float32)

    def call():
        weight, bias = linear(rng, hidden, width)
        return lambda: backend.attention_out(given, weight, bias, residual, decode_rows(rows))

    weights = 2 * hidden * width
    moved = weights + given.nbytes + 2 * residual.nbytes
    yield Case("", [call() for _ in range(copies(backend, weights))], moved, 2 * rows * hidden * width)
