"""How much memory a model needs, to the byte, before anything is downloaded or allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint.tensor_names import BLOCK_VALUES, TensorSpec, expected_tensors
from .config import KNOWN_CONFIGS, ModelConfig
from .dense_forms import check_dense_dtype, has_copy, matrix_bytes, screen_bytes
from .devices import GPU_MEMORY_UTILIZATION, check_known, device_for, gpu_memory, gpu_problem
from .errors import RequestError
from .host_memory import HostMemory, host_memory
from .kv_cache import pages_for, window_pages_needed
from .strict_json import show

#: Where the logits of every token are wanted, as many in one step as make 64 MiB.
LOGITS_AT_ONCE = 1 << 24
#: Bytes of one key or value element in the cache, by numerics.
KV_ELEMENT_BYTES: Mapping[str, int] = {"exact": 4, "fast": 2}
#: The native structs of those names (csrc/model/ops.h); matrices of a layer that can be adapted; products of
#: a row at a time, of q, k and v.
EXPERT_CONTROL_BYTES, LORA_MATRIX_BYTES, LORA_MATRICES, LORA_PRODUCTS = 8, 24, 7, 3
GROUPS = ("embedding", "attention", "router", "experts", "norms", "lm_head")


@dataclass(frozen=True)
class Plan:
    """Bytes by purpose, for `sequences` sequences of `context` tokens each."""

    config: ModelConfig
    device: str
    numerics: str
    dense_dtype: str
    context: int
    sequences: int
    page_size: int  # tokens
    max_batch_tokens: int
    weights: dict[str, int]  # group -> bytes
    parameters: int
    full_pages: int  # of each full-attention layer, for all sequences
    window_pages: int  # of each sliding layer, for all sequences
    kv_full_bytes: int
    kv_window_bytes: int
    activation_bytes: int
    logit_bytes: int  # one row per sequence; on a GPU as many as a step may be asked for
    workspace_bytes: int  # of a GPU, partial results of split work and weights on their way
    intervention_bytes: int  # of steering, expert controls and adapters' products, once requests have them
    memory: HostMemory | None  # of the device; None when unknown

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def total_bytes(self) -> int:
        cache = self.kv_full_bytes + self.kv_window_bytes
        work = self.activation_bytes + self.logit_bytes + self.workspace_bytes + self.intervention_bytes
        return self.weight_bytes + cache + work

    @property
    def fits(self) -> bool | None:
        """Whether the available memory holds it all; None when that memory is unknown."""
        return None if self.memory is None else self.total_bytes <= self.memory.available

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, sizes in bytes."""
        return {
            "device": self.device,
            "numerics": self.numerics,
            "dense_dtype": self.dense_dtype,
            "context": self.context,
            "sequences": self.sequences,
            "page_size": self.page_size,
            "max_batch_tokens": self.max_batch_tokens,
            "parameters": self.parameters,
            "weights": dict(self.weights),
            "weight_bytes": self.weight_bytes,
            "kv_cache": {
                "full_pages_per_layer": self.full_pages,
                "window_pages_per_layer": self.window_pages,
                "full_bytes": self.kv_full_bytes,
                "window_bytes": self.kv_window_bytes,
            },
            "activation_bytes": self.activation_bytes,
            "logit_bytes": self.logit_bytes,
            "workspace_bytes": self.workspace_bytes,
            "intervention_bytes": self.intervention_bytes,
            "total_bytes": self.total_bytes,
            "memory_total_bytes": self.memory and self.memory.total,
            "memory_available_bytes": self.memory and self.memory.available,
            "fits": self.fits,
            "config": self.config.to_dict(),
        }


def plan(
    config: ModelConfig,
    *,
    context: int,
    sequences: int = 1,
    numerics: str = "exact",
    page_size: int = 32,
    max_batch_tokens: int = 512,
    device: str = "cpu",
    dense_dtype: str = "bf16",
    lora_rank: int = 0,
) -> Plan:
    """Count what `sequences` sequences of `context` tokens need; `numerics` is "exact" or "fast".

    lora_rank: the largest of the adapters that will be loaded; what they take themselves comes on top
    The pages are those that LLM sets aside for them. A plan for "cuda" can be made without a GPU.
    Raises RequestError for a context the model does not support, or another setting that cannot be.
    """
    if not isinstance(numerics, str) or numerics not in KV_ELEMENT_BYTES:
        raise RequestError(f"numerics must be one of {', '.join(KV_ELEMENT_BYTES)}, found {show(numerics)}")
    check_known(device)
    device = device_for(device) if device == "auto" else device
    if device != "cpu" and numerics == "exact":
        raise RequestError(f"numerics is 'exact', which {device} does not offer; use 'fast', or device='cpu'")
    check_dense_dtype(dense_dtype, numerics, device)
    for name, value, least, most in (
        ("context", context, 1, config.max_position_embeddings),
        ("sequences", sequences, 1, 1 << 20),
        ("page_size", page_size, 1, 1 << 20),
        ("max_batch_tokens", max_batch_tokens, 1, 1 << 20),
        ("lora_rank", lora_rank, 0, 1 << 20),
    ):
        if type(value) is not int or not least <= value <= most:
            raise RequestError(f"{name} must be a whole number from {least} to {most:,}, found {show(value)}")

    weights = weight_bytes(config, dense_dtype)
    if device == "cpu":
        weights["lm_head in 6 bits"] = screen_bytes(config.vocab_size, config.hidden_size)
    parameters = sum(spec.parameters for spec in expected_tensors(config))

    workspace, logit_rows = 0, sequences
    if device != "cpu":
        logit_rows = logit_rows_of(config, sequences)[1]
        tiled, workspace = gpu_bytes(
            config, max_batch_tokens, sequences, reach(context, page_size), logit_rows
        )
        weights["padding to tiles"] = tiled - sum(weights.values())

    page_bytes = 2 * page_size * config.key_value_size * KV_ELEMENT_BYTES[numerics]  # keys and values
    full_pages = sequences * pages_for(context, page_size)
    window_pages = window_pages_needed(sequences, context, max_batch_tokens, config.sliding_window, page_size)
    sliding = sum(config.is_sliding(layer) for layer in range(config.num_hidden_layers))
    return Plan(
        config=config,
        device=device,
        numerics=numerics,
        dense_dtype=dense_dtype,
        context=context,
        sequences=sequences,
        page_size=page_size,
        max_batch_tokens=max_batch_tokens,
        weights=weights,
        parameters=parameters,
        full_pages=full_pages,
        window_pages=window_pages,
        kv_full_bytes=(config.num_hidden_layers - sliding) * full_pages * page_bytes,
        kv_window_bytes=sliding * window_pages * page_bytes,
        activation_bytes=activation_bytes(config, max_batch_tokens, numerics, device),
        logit_bytes=logit_bytes(config, logit_rows),
        workspace_bytes=workspace,
        intervention_bytes=intervention_bytes(config, sequences, max_batch_tokens, lora_rank),
        memory=_memory_of(device),
    )


def weight_bytes(config: ModelConfig, dense_dtype: str = "bf16") -> dict[str, int]:
    """Bytes of the weights by group.

    A matrix that is rounded to 8 bits counts as that: what it was copied from need not stay in memory. One
    that is packed counts twice: the stored numbers serve the steps of many rows.
    """
    found = dict.fromkeys(GROUPS, 0)
    for spec in expected_tensors(config):
        found[spec.group] += spec.nbytes
    for spec in copied_matrices(config, dense_dtype):
        stays = spec.nbytes if dense_dtype == "packed" else 0
        found[spec.group] += matrix_bytes(dense_dtype, *spec.shape) - spec.nbytes + stays
    return found


def copied_matrices(config: ModelConfig, dense_dtype: str) -> list[TensorSpec]:
    """Those of which the CPU has a copy in another form."""
    return [
        spec
        for spec in expected_tensors(config)
        if spec.group in ("attention", "lm_head")
        and len(spec.shape) == 2
        and has_copy(dense_dtype, spec.shape[1])
    ]


def _memory_of(device: str) -> HostMemory | None:
    if device != "cuda":
        return host_memory()
    return None if gpu_problem() else gpu_memory(GPU_MEMORY_UTILIZATION)


def native_config(config: ModelConfig) -> dict[str, Any]:
    """The config as the native model reads it: with `windows`, one per layer, 0 for full attention."""
    windows = [config.sliding_window if config.is_sliding(i) else 0 for i in range(config.num_hidden_layers)]
    return {**config.to_dict(), "windows": windows}


def reach(context: int, page_size: int) -> int:
    """Positions in the native page tables of sequences of `context` tokens: their widths are powers of 2."""
    return page_size << (pages_for(context, page_size) - 1).bit_length()


def gpu_bytes(
    config: ModelConfig, rows: int, sequences: int, positions: int, logit_rows: int
) -> tuple[int, int]:
    """A GPU's bytes for the weights, and for work on steps within these limits."""
    from . import _native

    return _native.gpu_bytes(native_config(config), rows, sequences, positions, logit_rows)


def logit_rows_of(config: ModelConfig, sequences: int) -> tuple[int, int]:
    """Rows of logits in one step: the most of sequences that want all of theirs, and of any."""
    scored = max(1, LOGITS_AT_ONCE // config.vocab_size)
    return scored, max(scored, sequences)


def logit_bytes(config: ModelConfig, rows: int) -> int:
    """Bytes of `rows` rows of logits."""
    return 4 * rows * config.vocab_size


def working_bytes(config: ModelConfig, tokens: int, logit_rows: int, numerics: str, device: str) -> int:
    """What a model takes beside weights and cache, for steps of `tokens` tokens and `logit_rows` logits."""
    return activation_bytes(config, tokens, numerics, device) + logit_bytes(config, logit_rows)


def intervention_bytes(config: ModelConfig, sequences: int, tokens: int, lora_rank: int = 0) -> int:
    """Bytes of the native `Interventions` (csrc/model/interventions.h), all its tables in use.

    Of each sequence of a step, in every layer, a steering vector and a control of each expert; with adapters,
    a place for each matrix that can have one, and for a step of `tokens` tokens what comes between A and B.
    """
    layers = config.num_hidden_layers
    found = sequences * layers * (4 * config.hidden_size + EXPERT_CONTROL_BYTES * config.num_local_experts)
    if lora_rank:
        found += sequences * LORA_MATRIX_BYTES * (LORA_MATRICES * layers + 1)  # and lm_head
        found += 4 * lora_rank * tokens * max(LORA_PRODUCTS, config.num_experts_per_tok)
    return found


def weights_that_fit(name: str, weights: int, working: int, memory: HostMemory) -> str:
    """Why a GPU cannot hold a model, and what could be run instead."""
    text = (
        f"{name} needs {weights + working:,} bytes before any context, this GPU offers {memory.available:,} "
        f"of {memory.total:,}"
    )
    for other, config in KNOWN_CONFIGS.items():
        found = plan(config, context=8192, numerics="fast", device="cuda")
        if found.total_bytes <= memory.available:
            return f"{text}; {other} with a context of 8192 would fit, as would device='cpu'"
    return f"{text}; use device='cpu', free some of it, or raise gpu_memory_utilization"


def activation_bytes(
    config: ModelConfig, max_batch_tokens: int, numerics: str = "exact", device: str = "cpu"
) -> int:
    """Bytes of the buffers between operations, for one step of `max_batch_tokens` tokens.

    Counts what the native model's `Activations` (csrc/model/activations.h) holds.
    """
    assignments = max_batch_tokens * config.num_experts_per_tok
    floats = (
        2 * max_batch_tokens * config.hidden_size  # residual stream, and the same normed
        + 2 * max_batch_tokens * config.query_size  # queries, attention output
        + 3 * assignments  # expert ids, routing weights, order by expert
        + config.num_local_experts
        + 1
        + config.head_dim // 2  # rotary frequencies
    )
    if numerics == "exact":
        return 4 * (floats + assignments * config.intermediate_size)
    expert_inputs = max_batch_tokens * config.hidden_size + assignments * config.intermediate_size
    if device != "cpu":
        return 4 * floats + 2 * expert_inputs  # bf16
    return 4 * floats + expert_inputs + 4 * (expert_inputs // BLOCK_VALUES)  # 8 bits, a float scale a block
