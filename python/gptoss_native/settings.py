"""What an LLM is made with: the caller's settings, checked, and what the checkpoint recommends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import ModelConfig
from .errors import CheckpointError, RequestError
from .sampling import SamplingParams
from .strict_json import show

#: What numerics="auto" means.
AUTO_NUMERICS = "fast"
# name -> (lowest, highest, whether None is allowed)
_WHOLE_NUMBERS: dict[str, tuple[int, int, bool]] = {
    "max_model_len": (1, 1 << 30, True),
    "threads": (0, 1024, False),
    "max_num_seqs": (1, 1 << 16, False),
    "max_num_batched_tokens": (1, 1 << 16, False),
    "page_size": (16, 256, False),
    "seed": (0, (1 << 64) - 1, False),
    "kv_cache_tokens": (1, 1 << 40, True),
    "max_logprobs": (-1, 1 << 20, False),
}


def check_settings(
    *,
    numerics: Any,
    gpu_memory_utilization: Any,
    enable_prefix_caching: Any,
    **numbers: Any,
) -> None:
    """Raise RequestError, naming the setting, for a value that LLM does not take."""
    for name, value in numbers.items():
        least, most, optional = _WHOLE_NUMBERS[name]
        if not (optional and value is None) and (type(value) is not int or not least <= value <= most):
            raise RequestError(
                f"{name} must be a whole number from {least} to {most}, found {show(value)}; "
                + ("leave it out, or choose one of those" if optional else "choose one of those")
            )
    page_size, rows, sequences = (
        numbers[name] for name in ("page_size", "max_num_batched_tokens", "max_num_seqs")
    )
    if page_size % 16:
        raise RequestError(f"page_size must be a multiple of 16, found {page_size}; use 32")
    if not isinstance(numerics, str) or numerics not in ("auto", "exact", "fast"):
        raise RequestError(f"numerics must be 'auto', 'exact' or 'fast', found {show(numerics)}; use 'auto'")
    if rows < sequences:
        raise RequestError(
            f"max_num_batched_tokens must be at least max_num_seqs, found {rows} and {sequences}; "
            "a step decodes one token of each sequence"
        )
    if type(gpu_memory_utilization) not in (int, float) or not 0 < gpu_memory_utilization <= 1:
        raise RequestError(
            "gpu_memory_utilization must be more than 0 and at most 1, "
            f"found {show(gpu_memory_utilization)}; use 0.9"
        )
    if not isinstance(enable_prefix_caching, bool):
        raise RequestError(
            f"enable_prefix_caching must be True or False, found {show(enable_prefix_caching)}; pass a bool"
        )


def end_tokens(config: ModelConfig, generation: Mapping[str, Any]) -> set[int]:
    """Tokens that end a sequence: those of generation_config.json, or else of the config."""
    found = generation.get("eos_token_id")
    if found is None:
        return set(config.eos_token_ids)
    return set(found) if isinstance(found, list) else {found}


def default_params(generation: Mapping[str, Any]) -> SamplingParams:
    """What generation_config.json recommends; do_sample = false means greedy."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    settings = {name: generation[name] for name in names if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        settings["temperature"] = 0.0
    try:
        return SamplingParams(**settings)
    except RequestError as error:
        raise CheckpointError(f"generation_config.json: {error}") from None
