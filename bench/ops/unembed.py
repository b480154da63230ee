"""unembed: python -m bench.ops.unembed"""

import numpy as np

from bench.ops.harness import HIDDEN, VOCAB, Case, bf16, run, values


def cases(backend, rng, rows):
    residual, norm, lm_head = values(rng, rows, HIDDEN), bf16(rng, HIDDEN), bf16(rng, VOCAB, HIDDEN)
    wanted, logits = np.arange(rows, dtype=np.int32), np.empty((rows, VOCAB), np.float32)
    call = [lambda: backend.unembed(residual, wanted, norm, 1e-5, lm_head, logits)]
    yield Case("", call, lm_head.nbytes, 2 * rows * VOCAB * HIDDEN)


if __name__ == "__main__":
    run({"unembed": cases}, __doc__)
