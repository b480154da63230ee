"""How many pages an LLM sets aside: what its sequences can use, or what the memory holds."""

from __future__ import annotations

import pytest
from gptoss_native.cache_size import LEAST_TOKENS, CacheSize, cache_size
from gptoss_native.config import KNOWN_CONFIGS
from gptoss_native.errors import RequestError
from gptoss_native.host_memory import HostMemory

CONFIG = KNOWN_CONFIGS["openai/gpt-oss-20b"]
TOKEN_BYTES = 12 * 2 * 8 * 64 * 2  # full layers x (key, value) x heads x size x bf16
GIB = 1 << 30


def size_of(**changes) -> CacheSize:
    settings = {
        "element_bytes": 2,
        "page_size": 32,
        "max_model_len": None,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 512,
        "kv_cache_tokens": None,
        "weight_bytes": 13 * GIB,
        "memory": HostMemory(1000 * GIB, 1000 * GIB),
    }
    return cache_size(CONFIG, **{**settings, **changes})


def test_with_memory_to_spare_every_sequence_can_be_as_long_as_the_model_allows():
    assert size_of() == CacheSize(4 * 4096, (512 + 4 * 125) // 32 + 8, 131_072)
    assert size_of(max_model_len=33).full_pages == 4 * 2
    assert size_of(memory=None).max_model_len == 131_072


def test_scarce_memory_shortens_the_sequences_but_leaves_room_for_a_chat():
    found = size_of(memory=HostMemory(16 * GIB, 15 * GIB))
    assert 0.7 * 2 * GIB < found.full_pages * 32 * TOKEN_BYTES <= 0.8 * 2 * GIB
    assert found.max_model_len == pytest.approx(found.full_pages * 32, abs=32)
    assert size_of(memory=HostMemory(8 * GIB, 1 * GIB)).max_model_len == LEAST_TOKENS


def test_a_length_that_cannot_be_had_is_refused_with_both_numbers():
    with pytest.raises(RequestError, match=r"131073, the model's limit is 131072"):
        size_of(max_model_len=131_073)
    with pytest.raises(RequestError, match=r"100000, but the free memory holds \d+ tokens"):
        size_of(max_model_len=100_000, memory=HostMemory(16 * GIB, 15 * GIB))
    with pytest.raises(RequestError, match="1000, but kv_cache_tokens allows 999"):
        size_of(max_model_len=1000, kv_cache_tokens=999)


def test_a_given_capacity_is_kept():
    assert size_of(kv_cache_tokens=1000).full_pages == 32
    assert size_of(kv_cache_tokens=1000).max_model_len == 1000
    assert size_of(kv_cache_tokens=1 << 40, max_model_len=100).full_pages == 4 * 4  # nobody could use more
    assert size_of(kv_cache_tokens=1 << 40, memory=HostMemory(16 * GIB, 15 * GIB)).max_model_len == 131_072
