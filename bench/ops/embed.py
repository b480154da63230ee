"""embed: python -m bench.ops.embed"""

import numpy as np

from bench.ops.harness import Case, bf16, run


def cases(backend, rng, rows, model):
    weight = bf16(rng, model.vocab_size, model.hidden_size)
    tokens = rng.integers(0, model.vocab_size, rows).astype(np.int32)
    residual = np.empty((rows, model.hidden_size), np.float32)
    call = [lambda: backend.embed(tokens, weight, residual)]
    yield Case("", call, 2 * rows * model.hidden_size + residual.nbytes)


if __name__ == "__main__":
    run({"embed": cases}, __doc__)
