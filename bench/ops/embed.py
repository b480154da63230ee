"""embed: python -m bench.ops.embed"""

import numpy as np

from bench.ops.harness import HIDDEN, VOCAB, Case, bf16, run


def cases(backend, rng, rows):
    weight, residual = bf16(rng, VOCAB, HIDDEN), np.empty((rows, HIDDEN), np.float32)
    tokens = [rng.integers(0, VOCAB, rows).astype(np.int32) for _ in range(1000)]
    calls = [lambda ids=ids: backend.embed(ids, weight, residual) for ids in tokens]
    yield Case("", calls, rows * HIDDEN * 2)


if __name__ == "__main__":
    run({"embed": cases}, __doc__)
