"""The shape of a gpt-oss model, read from either layout's config.json and validated in one place.

A ModelConfig that exists is one the engine can run: construction checks every field and how fields agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import CheckpointError
from .strict_json import show

HEAD_DIM = 64
SLIDING, FULL = "sliding_attention", "full_attention"

# Inclusive bounds. The upper ones are no promise of support: they keep every product of two fields far below
# 2**63,
# while what is really allocated is bounded by the tensors the file holds.
INTEGER_BOUNDS: dict[str, tuple[int, int]] = {
    "hidden_size": (32, 65_536),
    "intermediate_size": (32, 65_536),
    "num_hidden_layers": (1, 4_096),
    "num_attention_heads": (1, 4_096),
    "num_key_value_heads": (1, 4_096),
    "head_dim": (HEAD_DIM, HEAD_DIM),
    "num_local_experts": (1, 128),
    "num_experts_per_tok": (1, 128),
    "vocab_size": (1, 1 << 22),
    "sliding_window": (1, 1 << 30),
    "max_position_embeddings": (1, 1 << 20),
    "initial_context_length": (1, 1 << 20),
}
NUMBER_BOUNDS: dict[str, tuple[float, float]] = {
    "rope_theta": (1.0 + 1e-6, 1e12),
    "rope_factor": (1.0, 1024.0),
    "rope_beta_fast": (1e-3, 1e6),
    "rope_beta_slow": (1e-3, 1e6),
    "rms_norm_eps": (1e-30, 1.0),
    "swiglu_limit": (1e-3, 1e6),
}


class FieldError(CheckpointError):
    """A config field that is wrong; the readers add the file's name and its own name of the field."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem

    def __reduce__(self) -> tuple[type[FieldError], tuple[str, str]]:
        """Exceptions pickle their message alone, from which this one could not be made again."""
        return type(self), (self.name, self.problem)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one model, with Hugging Face's field names.

    Raises CheckpointError, naming the field, when a value is missing, of the wrong type or unsupported.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    vocab_size: int
    sliding_window: int  # tokens visible to a query, itself included
    max_position_embeddings: int = 131_072
    initial_context_length: int = 4_096  # what YaRN calls the original length
    rope_theta: float = 150_000.0
    rope_factor: float = 32.0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    layer_types: tuple[str, ...] = ()  # empty: layers alternate, sliding first
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in INTEGER_BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                wanted = f"{low}" if low == high else f"a whole number from {low:,} to {high:,}"
                raise FieldError(
                    name, f"must be {wanted}, found {show(value)}; use the model's own config.json"
                )
        for name, (low, high) in NUMBER_BOUNDS.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:  # NaN fails both comparisons
                raise FieldError(
                    name,
                    f"must be a number from {low:g} to {high:g}, found {show(value)}; use the model's own "
                    "config.json",
                )
            object.__setattr__(self, name, float(value))
        self._check_sizes()
        self._check_yarn_ramp()
        object.__setattr__(self, "layer_types", self._checked_layer_types())
        self._check_tokens()

    def _check_sizes(self) -> None:
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) % 32:
                raise FieldError(
                    name,
                    f"must be a multiple of 32 (one MXFP4 block), found {getattr(self, name)}; pad the "
                    "weights to "
                    f"{-(-getattr(self, name) // 32) * 32}",
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise FieldError(
                "num_attention_heads",
                f"must be a multiple of num_key_value_heads, found {self.num_attention_heads} and "
                f"{self.num_key_value_heads}; use the model's own config.json",
            )
        if self.num_experts_per_tok > self.num_local_experts:
            raise FieldError(
                "num_experts_per_tok",
                f"must not exceed num_local_experts, found {self.num_experts_per_tok} and "
                f"{self.num_local_experts}; "
                "use the model's own config.json",
            )

    def _check_yarn_ramp(self) -> None:
        low, high = self.yarn_ramp
        if not low < high:
            raise FieldError(
                "rope_beta_fast",
                f"and rope_beta_slow must give a YaRN ramp that rises within 0 to {HEAD_DIM - 1}, found "
                f"{low:.3f} to {high:.3f} from beta_fast {self.rope_beta_fast:g}, beta_slow "
                f"{self.rope_beta_slow:g}, theta {self.rope_theta:g} and an original length of "
                f"{self.initial_context_length}; use the model's own config.json",
            )

    def _checked_layer_types(self) -> tuple[str, ...]:
        types = self.layer_types
        if not isinstance(types, (list, tuple)):
            raise FieldError(
                "layer_types", f"must be a list, found {show(types)}; remove it for alternating layers"
            )
        if not types:
            return tuple(FULL if layer % 2 else SLIDING for layer in range(self.num_hidden_layers))
        if len(types) != self.num_hidden_layers:
            raise FieldError(
                "layer_types",
                f"must name num_hidden_layers = {self.num_hidden_layers} layers, found {len(types)}; make "
                "them agree",
            )
        for layer, kind in enumerate(types):
            if not isinstance(kind, str) or kind not in (SLIDING, FULL):
                raise FieldError(
                    f"layer_types[{layer}]",
                    f"must be '{SLIDING}' or '{FULL}', found {show(kind)}; use the model's own config.json",
                )
        return tuple(types)

    def _check_tokens(self) -> None:
        tokens = [("eos_token_id", token) for token in self.eos_token_ids]
        if self.pad_token_id is not None:
            tokens.append(("pad_token_id", self.pad_token_id))
        for name, token in tokens:
            check_token_id(name, token, self.vocab_size)

    @property
    def yarn_ramp(self) -> tuple[float, float]:
        """(low, high): pair indices between which YaRN blends (arXiv 2309.00071, section 3.2), unrounded."""

        def pair(rotations: float) -> float:
            ratio = self.initial_context_length / (rotations * 2 * math.pi)
            return HEAD_DIM * math.log(ratio) / (2 * math.log(self.rope_theta))

        return max(pair(self.rope_beta_fast), 0.0), min(pair(self.rope_beta_slow), HEAD_DIM - 1.0)

    @property
    def query_size(self) -> int:
        """Columns of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Columns of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    def is_sliding(self, layer: int) -> bool:
        """Whether `layer` attends to the last `sliding_window` tokens only."""
        return self.layer_types[layer] == SLIDING

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {
            item.name: list(value) if isinstance(value := getattr(self, item.name), tuple) else value
            for item in fields(self)
        }

    @staticmethod
    def from_huggingface(values: Mapping[str, Any], source: str) -> ModelConfig:
        """Read a Hugging Face `config.json`; `source` names the file in errors. Raises CheckpointError."""
        from .checkpoint.config_files import from_huggingface

        return from_huggingface(values, source)

    @staticmethod
    def from_openai(values: Mapping[str, Any], source: str) -> ModelConfig:
        """Read the `config.json` of OpenAI's own layout (`original/`). Raises CheckpointError."""
        from .checkpoint.config_files import from_openai

        return from_openai(values, source)


def check_token_id(name: str, token: Any, vocab_size: int) -> None:
    """Raise FieldError unless `token` is an id of a vocabulary of `vocab_size`."""
    if type(token) is not int or not 0 <= token < vocab_size:
        raise FieldError(
            name, f"must be a token id below vocab_size = {vocab_size}, found {show(token)}; correct the id"
        )


_GPT_OSS_20B = ModelConfig(
    hidden_size=2880,
    intermediate_size=2880,
    num_hidden_layers=24,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=HEAD_DIM,
    num_local_experts=32,
    num_experts_per_tok=4,
    vocab_size=201_088,
    sliding_window=128,
    eos_token_ids=(200_002,),
    pad_token_id=199_999,
)

#: The two published models, so that they can be planned for before they are downloaded.
KNOWN_CONFIGS: dict[str, ModelConfig] = {
    "openai/gpt-oss-20b": _GPT_OSS_20B,
    "openai/gpt-oss-120b": replace(_GPT_OSS_20B, num_hidden_layers=36, num_local_experts=128, layer_types=()),
}
