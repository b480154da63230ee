"""Cases of paged_attention.

contexts: tokens before the new ones, of full layers; none: as follows.
`full` looks at all tokens before a row, a number is the window of the sliding layers. On a CPU 2,048 tokens
come before the new ones; on a GPU the table runs through contexts, as far as their keys and values fit 2 GB.
"""

import numpy as np

from ..cases import HEAD_DIM, Case, batch, bf16, copies, is_decoded, page_pool, values

CONTEXT, MOST_BYTES = 2048, 2.2e9
DECODE_CONTEXTS, PROMPT_CONTEXTS = (1024, 8192, 32_768, 131_000), (0, 8192)


def contexts_of(backend, rows, model, asked):
    """(tokens before the new ones, window) pairs."""
    window = model.sliding_window
    if asked:
        return [*((context, 0) for context in asked), (max(asked), window)]
    if backend.device != "cuda":
        return [(CONTEXT, 0), (CONTEXT, window)]
    many = DECODE_CONTEXTS if is_decoded(rows) else PROMPT_CONTEXTS
    return [*((context, 0) for context in many), (CONTEXT, window)]


def cases(backend, rng, rows, model, contexts=()):
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    queries, sinks = values(rng, rows, heads, HEAD_DIM), bf16(rng, heads)
    output = np.empty_like(queries)
    for before, window in contexts_of(backend, rows, model, contexts):
        row_start, context, pages = batch(rows, before)
        sequences, new = len(context), rows // len(context)
        length = before + new
        for dtype in (np.float32, np.uint16) if backend.has_exact else (np.uint16,):
            token_bytes = 2 * kv_heads * HEAD_DIM * np.dtype(dtype).itemsize
            if sequences * length * token_bytes > MOST_BYTES:
                continue
            fetched = sequences * min(length, window + new - 1 if window else length) * token_bytes
            make = values if dtype == np.float32 else bf16
            cache = page_pool(backend, lambda *shape, make=make: make(rng, *shape), pages.size, kv_heads)

            def call(cache=cache, table=(row_start, context, pages), window=window):
                backend.paged_attention(queries, *cache, sinks, *table, window, output)

            seen = sum(min(before + i + 1, window or length) for i in range(new))
            flops = 4 * sequences * seen * heads * HEAD_DIM
            label = f"{'f32 ' if dtype == np.float32 else ''}{window or f'full {before}'}"
            # Each recorded call has its own copy of the pages.
            sets = copies(backend, sum(part.nbytes for part in cache))
            yield Case(label, [call] * sets, fetched + queries.nbytes + output.nbytes, flops)
