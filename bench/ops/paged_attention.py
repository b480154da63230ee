"""paged_attention: python -m bench.ops.paged_attention

Up to 32 rows decode, one sequence each; more are one chunk of a prompt. Each has 2,048 tokens
before it. `full` looks at all of them, `128` at the window of the sliding layers.
"""

from functools import partial

import numpy as np

from bench.ops.harness import HEAD_DIM, HEADS, KV_HEADS, Case, bf16, copies, run, values

PAGE, CONTEXT, MOST_DECODING, WINDOW = 32, 2048, 32, 128


def cases(backend, rng, rows):
    decoding = rows <= MOST_DECODING
    sequences = rows if decoding else 1
    length = CONTEXT + rows // sequences
    per_sequence = -(-length // PAGE)
    queries, sinks = values(rng, rows, HEADS, HEAD_DIM), bf16(rng, HEADS)
    output = np.empty_like(queries)
    row_start = np.linspace(0, rows, sequences + 1).astype(np.int32)
    context = np.full(sequences, CONTEXT, np.int32)
    for dtype, window in ((np.float32, 0), (np.uint16, 0), (np.float32, WINDOW), (np.uint16, WINDOW)):
        bytes_per_token = 2 * KV_HEADS * HEAD_DIM * np.dtype(dtype).itemsize
        sets = copies(sequences * length * bytes_per_token)
        count = sets * sequences * per_sequence
        make = values if dtype == np.float32 else bf16
        keys = make(rng, count, KV_HEADS, HEAD_DIM, PAGE)
        cached = make(rng, count, KV_HEADS, PAGE, HEAD_DIM)
        tables = rng.permutation(count).astype(np.int32).reshape(sets, sequences, per_sequence)
        calls = [
            partial(
                backend.paged_attention,
                queries,
                keys,
                cached,
                sinks,
                row_start,
                context,
                pages,
                window,
                output,
            )
            for pages in tables
        ]
        new = rows // sequences
        seen = [min(CONTEXT + i + 1, window or length) for i in range(new)]
        fetched = min(length, window + new - 1 if window else length)
        flops = 4 * sequences * sum(seen) * HEADS * HEAD_DIM
        label = f"{'f32' if dtype == np.float32 else 'bf16'} {window or 'full'}"
        yield Case(label, calls, sequences * fetched * bytes_per_token, flops)


if __name__ == "__main__":
    run({"paged_attention": cases}, __doc__)
