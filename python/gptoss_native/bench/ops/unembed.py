"""Cases of unembed."""

import numpy as np

from ..cases import MOST_LOGIT_ROWS, Case, bf16, dense_kind, matrix_bytes, values


def cases(backend, rng, rows, model):
    if rows > MOST_LOGIT_ROWS:
        return
    hidden, vocab = model.hidden_size, model.vocab_size
    residual, norm, lm_head = values(rng, rows, hidden), bf16(rng, hidden), bf16(rng, vocab, hidden)
    wanted, logits = np.arange(rows, dtype=np.int32), np.empty((rows, vocab), np.float32)
    call = [lambda: backend.unembed(residual, wanted, norm, 1e-5, lm_head, logits)]
    moved = matrix_bytes(backend, vocab, hidden) + residual.nbytes + logits.nbytes
    yield Case("", call, moved, 2 * rows * vocab * hidden, dense_kind(backend))
