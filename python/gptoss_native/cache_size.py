"""How many key/value pages to set aside, and how long a sequence may therefore be."""

from __future__ import annotations

from dataclasses import dataclass

from .config import ModelConfig
from .errors import RequestError
from .host_memory import HostMemory
from .kv_cache import pages_for, window_pages_needed

#: Share of the memory left beside the weights that the cache may take. The system maps its pages as they
#: are first written, so what is never used costs nothing.
SHARE_OF_FREE_MEMORY = 0.8
#: Tokens of context given even where the memory looks full: the estimate may be wrong, and a chat needs some.
LEAST_TOKENS = 2048


@dataclass(frozen=True)
class CacheSize:
    """Pages of each pool, and the longest sequence, prompt and answer together."""

    full_pages: int
    window_pages: int
    max_model_len: int


def cache_size(
    config: ModelConfig,
    *,
    element_bytes: int,
    page_size: int,
    max_model_len: int | None,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    kv_cache_tokens: int | None,
    weight_bytes: int,
    memory: HostMemory | None,
    share: float = SHARE_OF_FREE_MEMORY,
) -> CacheSize:
    """Room for `max_num_seqs` sequences of `max_model_len` tokens, or for as much of that as memory allows.

    `kv_cache_tokens` counts in place of what memory allows; more than the sequences can use is never taken.
    Without a `max_model_len` it is the model's own limit or what fits, whichever is less. Raises RequestError
    when a length asked for is beyond either.
    """
    limit = config.max_position_embeddings
    if max_model_len is not None and max_model_len > limit:
        raise RequestError(
            f"max_model_len is {max_model_len}, the model's limit is {limit}; lower max_model_len"
        )
    longest = max_model_len or limit

    full_layers = config.layer_types.count("full_attention")
    element_count = 2 * config.key_value_size  # keys and values of one token in one layer
    window_pages = window_pages_needed(
        max_num_seqs, longest, max_num_batched_tokens, config.sliding_window, page_size
    )
    window_bytes = (
        window_pages * page_size * element_count * element_bytes * (config.num_hidden_layers - full_layers)
    )
    tokens = max_num_seqs * pages_for(longest, page_size) * page_size
    if kv_cache_tokens is not None:
        tokens, source = min(tokens, kv_cache_tokens), "kv_cache_tokens allows"
    elif memory is not None and full_layers:
        spare = share * (memory.available - weight_bytes) - window_bytes
        affordable = int(spare // (full_layers * element_count * element_bytes))
        tokens, source = min(tokens, max(affordable, LEAST_TOKENS)), "the free memory holds"
    if max_model_len is not None and tokens < max_model_len:
        raise RequestError(
            f"max_model_len is {max_model_len}, but {source} {tokens} tokens of keys and values; "
            f"lower max_model_len to {tokens}" + (" or raise kv_cache_tokens" if kv_cache_tokens else "")
        )
    return CacheSize(pages_for(tokens, page_size), window_pages, min(longest, tokens))
