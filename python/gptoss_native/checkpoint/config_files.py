"""config.json <-> ModelConfig, for Hugging Face's layout and for OpenAI's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import FieldError, ModelConfig
from ..errors import CheckpointError
from ..strict_json import show

_MISSING = object()
_HARMONY_VOCAB, _HARMONY_RETURN, _HARMONY_ENDOFTEXT = 201_088, 200_002, 199_999

# ModelConfig field -> the name in OpenAI's file.
_OPENAI_NAMES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
    "vocab_size": "vocab_size",
    "sliding_window": "sliding_window",
    "initial_context_length": "initial_context_length",
    "rope_theta": "rope_theta",
    "rope_factor": "rope_scaling_factor",
    "rope_beta_fast": "rope_ntk_beta",
    "rope_beta_slow": "rope_ntk_alpha",
    "swiglu_limit": "swiglu_limit",
}
_HF_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "sliding_window",
    "rms_norm_eps",
)
# Settings whose other values would need code this engine does not have: (name, the one value, required).
_HF_FIXED = (
    ("model_type", "gpt_oss", True),
    ("hidden_act", "silu", False),
    ("attention_bias", True, False),
    ("tie_word_embeddings", False, False),
    ("swiglu_alpha", 1.702, False),
)
# (ModelConfig field, key inside rope_scaling)
_ROPE_FIELDS = (("rope_factor", "factor"), ("rope_beta_fast", "beta_fast"), ("rope_beta_slow", "beta_slow"))


def is_openai(values: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is written in OpenAI's names."""
    return "num_experts" in values and "num_local_experts" not in values and "model_type" not in values


def from_openai(values: Mapping[str, Any], source: str) -> ModelConfig:
    """Read OpenAI's config.json; what it does not say (epsilon, tokens, positions) is constant in gpt-oss."""
    found = {name: _required(values, key, source) for name, key in _OPENAI_NAMES.items()}
    _check_fixed(values, (("swiglu_alpha", 1.702, False),), source)
    return _build(found | _default_tokens(found["vocab_size"]), _OPENAI_NAMES, source)


def from_huggingface(values: Mapping[str, Any], source: str) -> ModelConfig:
    """Read a Hugging Face config.json, old (`rope_scaling`) or new (`rope_parameters`)."""
    _check_fixed(values, _HF_FIXED, source)
    found = {name: _required(values, name, source) for name in _HF_REQUIRED}
    found["num_local_experts"] = _one_of(values, ("num_local_experts", "num_experts"), source)
    found["num_experts_per_tok"] = _one_of(values, ("num_experts_per_tok", "experts_per_token"), source)
    for name in ("swiglu_limit", "max_position_embeddings"):
        if name in values:
            found[name] = values[name]
    if values.get("layer_types") is not None:
        found["layer_types"] = values["layer_types"]
        if not found["layer_types"]:
            raise CheckpointError(
                f"{source}: layer_types is empty; list one type per layer or remove the field"
            )
    found |= _rope(values, source)
    found |= _tokens(values, found["vocab_size"], source)
    _check_quantization(values.get("quantization_config"), source)
    names = {name: f"rope_scaling.{key}" for name, key in _ROPE_FIELDS}
    return _build(found, names, source)


def to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The config.json that `from_huggingface` reads back to `config`."""
    eos = list(config.eos_token_ids)
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "experts_per_token": config.num_experts_per_tok,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initial_context_length": config.initial_context_length,
        "intermediate_size": config.intermediate_size,
        "layer_types": list(config.layer_types),
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "gpt_oss",
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_local_experts,
        "pad_token_id": config.pad_token_id,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": config.rope_beta_fast,
            "beta_slow": config.rope_beta_slow,
            "factor": config.rope_factor,
            "original_max_position_embeddings": config.initial_context_length,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": config.rope_theta,
        "sliding_window": config.sliding_window,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
    }


def to_openai(config: ModelConfig) -> dict[str, Any]:
    """The config.json of OpenAI's layout.

    Raises CheckpointError when the model needs a field which that layout lacks.
    """
    values = {key: getattr(config, name) for name, key in _OPENAI_NAMES.items()}
    default = ModelConfig(**{name: values[key] for name, key in _OPENAI_NAMES.items()})
    for name in ("layer_types", "rms_norm_eps"):
        if getattr(config, name) != getattr(default, name):
            raise CheckpointError(
                f"OpenAI's layout has no field {name}: it can only say {show(getattr(default, name))}, and "
                "this model has "
                f"{show(getattr(config, name))}; write the Hugging Face layout instead"
            )
    return values


def _build(found: dict[str, Any], names: Mapping[str, str], source: str) -> ModelConfig:
    try:
        return ModelConfig(**found)
    except FieldError as error:
        raise CheckpointError(f"{source}: {names.get(error.name, error.name)} {error.problem}") from None


def _required(values: Mapping[str, Any], name: str, source: str) -> Any:
    value = values.get(name, _MISSING)
    if value is _MISSING or value is None:
        found = "nothing" if value is _MISSING else "null"
        raise CheckpointError(f"{source}: {name} is required, found {found}; use the model's own config.json")
    return value


def _one_of(values: Mapping[str, Any], names: tuple[str, str], source: str) -> Any:
    """The value of a field that goes by two names; both may be present when they agree."""
    first, second = (values.get(name, _MISSING) for name in names)
    if first is _MISSING and second is _MISSING:
        return _required(values, names[0], source)
    if (
        first is not _MISSING
        and second is not _MISSING
        and (type(first) is not type(second) or first != second)
    ):
        raise CheckpointError(
            f"{source}: {names[0]} and {names[1]} mean the same but are {show(first)} and {show(second)}; "
            "remove one"
        )
    return second if first is _MISSING else first


def _check_fixed(values: Mapping[str, Any], fixed: tuple[tuple[str, Any, bool], ...], source: str) -> None:
    for name, only, required in fixed:
        value = values.get(name, _MISSING)
        if value is _MISSING and not required:
            continue
        if type(value) is not type(only) or value != only:
            found = "nothing" if value is _MISSING else show(value)
            raise CheckpointError(
                f"{source}: {name} must be {only!r}, found {found}; only the gpt-oss architecture is "
                "supported"
            )


def _rope(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    key = "rope_scaling" if values.get("rope_scaling") is not None else "rope_parameters"
    rope = _required(values, key, source)
    if not isinstance(rope, dict):
        raise CheckpointError(
            f"{source}: {key} must be an object, found {show(rope)}; use the model's own config.json"
        )
    if key == "rope_scaling" and values.get("rope_parameters") not in (None, rope):
        raise CheckpointError(
            f"{source}: rope_scaling and rope_parameters mean the same but differ: {show(rope)} and "
            f"{show(values['rope_parameters'])}; remove one"
        )
    kind = _one_of(rope, ("rope_type", "type"), f"{source}: {key}")
    if kind != "yarn":
        raise CheckpointError(
            f"{source}: {key}.rope_type must be 'yarn', found {show(kind)}; only YaRN is supported"
        )
    if rope.get("truncate", True) is not False:
        raise CheckpointError(
            f"{source}: {key}.truncate must be false, found {show(rope.get('truncate', 'nothing'))}; "
            "gpt-oss does not round the YaRN ramp"
        )
    found = {name: _required(rope, inner, f"{source}: {key}") for name, inner in _ROPE_FIELDS}
    # Both places are read by some implementation, so they have to agree.
    for name, inner in (
        ("rope_theta", "rope_theta"),
        ("initial_context_length", "original_max_position_embeddings"),
    ):
        inside = f"{key}.{inner}"
        places = {name: values.get(name, _MISSING), inside: rope.get(inner, _MISSING)}
        present = {place: value for place, value in places.items() if value is not _MISSING}
        found[name] = _one_of(present, (name, inside), source)
    factor = rope.get("attention_factor")
    if factor is not None:
        raise CheckpointError(
            f"{source}: {key}.attention_factor must be absent, found {show(factor)}; gpt-oss derives it "
            "from the factor"
        )
    return found


def _tokens(values: Mapping[str, Any], vocab_size: Any, source: str) -> dict[str, Any]:
    defaults = _default_tokens(vocab_size)
    if "eos_token_id" in values:
        eos = values["eos_token_id"]
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if len(listed) > 64:
            raise CheckpointError(
                f"{source}: eos_token_id lists {len(listed)} tokens, at most 64 make sense; shorten it"
            )
        defaults["eos_token_ids"] = tuple(listed)
    if "pad_token_id" in values:
        defaults["pad_token_id"] = values["pad_token_id"]
    return defaults


def _default_tokens(vocab_size: Any) -> dict[str, Any]:
    if vocab_size == _HARMONY_VOCAB:
        return {"eos_token_ids": (_HARMONY_RETURN,), "pad_token_id": _HARMONY_ENDOFTEXT}
    return {"eos_token_ids": (), "pad_token_id": None}


def _check_quantization(quantization: Any, source: str) -> None:
    """Absent is fine here: the tensors then tell whether the experts are MXFP4."""
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method != "mxfp4":
        raise CheckpointError(
            f"{source}: quantization_config.quant_method must be 'mxfp4', found {show(method)}; "
            "convert the experts to MXFP4 first"
        )
