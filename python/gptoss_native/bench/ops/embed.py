"""Cases of embed."""

import numpy as np

from ..cases import Case, bf16


def cases(backend, rng, rows, model):
    weight = bf16(rng, model.vocab_size, model.hidden_size)
    tokens = rng.integers(0, model.vocab_size, rows).astype(np.int32)
    residual = np.empty((rows, model.hidden_size), np.float32)
    call = [lambda: backend.embed(tokens, weight, residual)]
    yield Case("", call, 2 * rows * model.hidden_size + residual.nbytes)
