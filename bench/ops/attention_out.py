"""attention_out: python -m bench.ops.attention_out"""

from bench.ops.harness import HEAD_DIM, HEADS, HIDDEN, Case, copies, linear, run, values


def cases(backend, rng, rows):
    width = HEADS * HEAD_DIM
    read = 2 * HIDDEN * width
    attended, residual = values(rng, rows, width), values(rng, rows, HIDDEN)
    weights = [linear(rng, HIDDEN, width) for _ in range(copies(read))]
    calls = [lambda layer=layer: backend.attention_out(attended, *layer, residual) for layer in weights]
    yield Case("", calls, read, 2 * rows * HIDDEN * width)


if __name__ == "__main__":
    run({"attention_out": cases}, __doc__)
