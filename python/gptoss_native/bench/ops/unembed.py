"""Cases of unembed. "bounds" is what a CPU computes where tokens are drawn (csrc/cpu/screen.h)."""

import numpy as np

from ...dense_forms import screen_bytes
from ..cases import MOST_LOGIT_ROWS, Case, bf16, dense_kind, matrix_bytes, values


def cases(backend, rng, rows, model):
    if rows > MOST_LOGIT_ROWS:
        return
    hidden, vocab = model.hidden_size, model.vocab_size
    residual, norm, lm_head = values(rng, rows, hidden), bf16(rng, hidden), bf16(rng, vocab, hidden)
    wanted, logits = np.arange(rows, dtype=np.int32), np.empty((rows, vocab), np.float32)
    others, products = residual.nbytes + logits.nbytes, 2 * rows * vocab * hidden

    def calls(**options):
        return [lambda: backend.unembed(residual, wanted, norm, 1e-5, lm_head, logits, **options)]

    yield Case("", calls(), matrix_bytes(backend, vocab, hidden) + others, products, dense_kind(backend))
    if backend.device == "cpu":
        yield Case("bounds", calls(screen=True), screen_bytes(vocab, hidden) + others, products, "int8")
