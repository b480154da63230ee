"""What of a model goes into which memory, and how much context is left room for."""

from __future__ import annotations

from typing import Any

from .cache_size import SHARE_OF_FREE_MEMORY, CacheSize, cache_size
from .checkpoint import Checkpoint
from .dense_forms import screen_bytes
from .devices import device_memory
from .errors import RequestError
from .plan import (
    KV_ELEMENT_BYTES,
    gpu_bytes,
    intervention_bytes,
    reach,
    weight_bytes,
    weights_that_fit,
    working_bytes,
)


def place(
    checkpoint: Checkpoint,
    backend: Any,
    *,
    numerics: str,
    dense_dtype: str,
    page_size: int,
    max_model_len: int | None,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    kv_cache_tokens: int | None,
    decoded_rows: int,
    logit_rows: int,
    gpu_memory_utilization: float,
) -> CacheSize:
    """Pages for the key/value cache beside everything else that the model needs on the backend's device.

    decoded_rows, logit_rows: the most of one step

    Raises RequestError when the device does not compute in these numerics, or cannot hold the weights or the
    context asked for.
    """
    config, device = checkpoint.config, backend.device
    if numerics == "exact" and not backend.has_exact:
        raise RequestError(f"numerics is 'exact', which {device} does not offer; use 'fast', or device='cpu'")
    memory, weights, share = (
        device_memory(backend, gpu_memory_utilization),
        sum(weight_bytes(config, dense_dtype).values()) + screen_bytes(config.vocab_size, config.hidden_size),
        SHARE_OF_FREE_MEMORY,
    )
    if backend.memory is not None:
        longest = max_model_len or config.max_position_embeddings
        weights, workspace = gpu_bytes(
            config, max_num_batched_tokens, decoded_rows, reach(longest, page_size), logit_rows
        )
        working = workspace + working_bytes(config, max_num_batched_tokens, logit_rows, numerics, device)
        working += intervention_bytes(config, max_num_seqs, max_num_batched_tokens)
        if weights + working > memory.available:
            raise RequestError(weights_that_fit(checkpoint.name, weights, working, memory))
        weights, share = weights + working, 1.0
    return cache_size(
        config,
        element_bytes=KV_ELEMENT_BYTES[numerics],
        page_size=page_size,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_tokens=kv_cache_tokens,
        weight_bytes=weights,
        memory=memory,
        share=share,
    )
