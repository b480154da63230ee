"""ModelConfig and the two kinds of config.json. Oracle: the published fields of gpt-oss, written out here."""

from __future__ import annotations

import json
import math

import pytest
from gptoss_native.checkpoint.config_files import to_huggingface, to_openai
from gptoss_native.config import FULL, KNOWN_CONFIGS, SLIDING, ModelConfig
from gptoss_native.errors import CheckpointError

from tests.checkpoints import tiny_config

HUGGING_FACE_20B = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": [SLIDING, FULL] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "pad_token_id": 199999,
    "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
OPENAI_20B = {
    "num_hidden_layers": 24,
    "num_experts": 32,
    "experts_per_token": 4,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}
ROPE = HUGGING_FACE_20B["rope_scaling"]
MISSING = object()


def read(changes, base=HUGGING_FACE_20B):
    values = {name: value for name, value in {**base, **changes}.items() if value is not MISSING}
    reader = ModelConfig.from_openai if base is OPENAI_20B else ModelConfig.from_huggingface
    return reader(json.loads(json.dumps(values)), "folder/config.json")


def test_both_files_of_20b_give_the_known_config():
    assert read({}) == read({}, OPENAI_20B) == KNOWN_CONFIGS["openai/gpt-oss-20b"]


def test_known_120b_differs_in_layers_and_experts_only():
    small, large = (KNOWN_CONFIGS[f"openai/gpt-oss-{size}b"].to_dict() for size in (20, 120))
    changed = {name: large[name] for name in small if small[name] != large[name]}
    assert changed.pop("layer_types") == [SLIDING, FULL] * 18
    assert changed == {"num_hidden_layers": 36, "num_local_experts": 128}


def test_yarn_ramp_of_the_published_models():
    assert KNOWN_CONFIGS["openai/gpt-oss-20b"].yarn_ramp == pytest.approx((8.0928, 17.3980), abs=1e-4)


def test_short_original_length_clamps_the_ramp():
    """Like transformers: 64 positions make less than 32 turns at any frequency."""
    low, high = tiny_config(initial_context_length=64).yarn_ramp
    assert low == 0
    assert high == pytest.approx(32 * math.log(64 / (2 * math.pi)) / math.log(150_000))


def test_new_transformers_spelling():
    """transformers 5 writes rope_parameters with the theta inside, and may leave out the duplicates."""
    rope = {
        "rope_scaling": MISSING,
        "rope_theta": MISSING,
        "rope_parameters": {**ROPE, "rope_theta": 150000.0},
    }
    only_new = {"experts_per_token": MISSING, "initial_context_length": MISSING, "layer_types": MISSING}
    assert read({**rope, **only_new}) == read({})
    assert read({"num_experts_per_tok": MISSING}) == read({})


def test_layer_types_are_honoured():
    kinds = [FULL, FULL, SLIDING] * 8
    config = read({"layer_types": kinds})
    assert config.layer_types == tuple(kinds)
    assert config.is_sliding(2)
    assert not config.is_sliding(0)


def test_tokens():
    assert read({"eos_token_id": [200002, 200012]}).eos_token_ids == (200002, 200012)
    assert read({"eos_token_id": None, "pad_token_id": None}).eos_token_ids == ()
    assert read({"vocab_size": 100}, OPENAI_20B).eos_token_ids == ()


@pytest.mark.parametrize("changes", [{}, {"eos_token_ids": (3, 4), "pad_token_id": 1, "rms_norm_eps": 1e-6}])
def test_huggingface_round_trip(changes):
    config = tiny_config(**changes)
    assert ModelConfig.from_huggingface(json.loads(json.dumps(to_huggingface(config))), "x") == config


def test_openai_round_trip_and_its_limits():
    config = tiny_config(rope_theta=10_000.0, swiglu_limit=5.0)
    assert ModelConfig.from_openai(json.loads(json.dumps(to_openai(config))), "x") == config
    with pytest.raises(CheckpointError, match="OpenAI's layout has no field rms_norm_eps"):
        to_openai(tiny_config(rms_norm_eps=1e-6))


INTEGERS = [
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "num_local_experts", "vocab_size", "sliding_window", "max_position_embeddings",
]  # fmt: skip


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    "value",
    [0, -1, 2.0, "64", True, [64], {}, 10**400, math.nan, math.inf],
    ids=lambda value: repr(value)[:9],
)
def test_integer_fields_refuse(name, value):
    with pytest.raises(CheckpointError, match=rf"^folder/config\.json: {name} must be .*, found "):
        read({name: value})


@pytest.mark.parametrize("name", [*INTEGERS[:9], "rms_norm_eps", "rope_theta", "model_type"])
@pytest.mark.parametrize("value", [MISSING, None], ids=["missing", "null"])
def test_required_fields(name, value):
    with pytest.raises(CheckpointError, match=rf"^folder/config\.json: {name} "):
        read({name: value})


@pytest.mark.parametrize("name", sorted(OPENAI_20B))
@pytest.mark.parametrize("value", [MISSING, None, "x", -1, math.nan, True], ids=repr)
def test_openai_fields_refuse(name, value):
    with pytest.raises(CheckpointError, match=rf"^folder/config\.json: {name} "):
        read({name: value}, OPENAI_20B)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 2881}, "hidden_size must be a multiple of 32 (one MXFP4 block), found 2881"),
        ({"intermediate_size": 48}, "intermediate_size must be a multiple of 32"),
        ({"head_dim": 128}, "head_dim must be 64, found 128"),
        ({"num_attention_heads": 60}, "multiple of num_key_value_heads, found 60 and 8"),
        ({"num_local_experts": 129}, "num_local_experts must be a whole number from 1 to 128, found 129"),
        ({"num_local_experts": 3}, "must not exceed num_local_experts, found 4 and 3"),
        ({"num_experts": 31}, "and num_experts mean the same but are 32 and 31"),
        ({"num_experts_per_tok": 3}, "and experts_per_token mean the same but are 3 and 4"),
        ({"num_experts_per_tok": 0, "experts_per_token": 0}, "num_experts_per_tok must be a whole number"),
        ({"layer_types": [SLIDING]}, "layer_types must name num_hidden_layers = 24 layers, found 1"),
        ({"layer_types": []}, "layer_types is empty"),
        ({"layer_types": "full"}, "layer_types must be a list, found 'full'"),
        ({"layer_types": [SLIDING, "linear"] * 12}, "layer_types[1] must be 'sliding_attention' or"),
        ({"layer_types": [[]] * 24}, "layer_types[0] must be"),
        ({"rope_scaling": None}, "rope_parameters is required, found nothing"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object, found 'yarn'"),
        ({"rope_scaling": {**ROPE, "rope_type": "linear"}}, "rope_type must be 'yarn', found 'linear'"),
        ({"rope_scaling": {**ROPE, "truncate": True}}, "truncate must be false, found True"),
        ({"rope_scaling": {**ROPE, "factor": math.nan}}, "rope_scaling.factor must be a number"),
        ({"rope_scaling": {**ROPE, "factor": True}}, "rope_scaling.factor must be a number"),
        ({"rope_scaling": {**ROPE, "beta_fast": "32"}}, "rope_scaling.beta_fast must be a number"),
        ({"rope_scaling": {**ROPE, "beta_fast": 0.5}}, "must give a YaRN ramp"),
        ({"rope_scaling": {**ROPE, "beta_slow": 1e6}}, "must give a YaRN ramp"),
        ({"rope_scaling": {**ROPE, "attention_factor": 2.0}}, "attention_factor must be absent, found 2.0"),
        ({"rope_scaling": {**ROPE, "original_max_position_embeddings": 8192}}, "are 4096 and 8192"),
        ({"rope_scaling": {**ROPE, "rope_theta": 10000}}, "mean the same but are 150000 and 10000"),
        ({"rope_parameters": {**ROPE, "factor": 2}}, "rope_parameters mean the same but differ"),
        ({"rope_theta": 1}, "rope_theta must be a number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a number from 1e-30 to 1, found 0"),
        ({"swiglu_limit": None}, "swiglu_limit must be a number"),
        ({"swiglu_limit": -7.0}, "swiglu_limit must be a number"),
        ({"model_type": "llama"}, "model_type must be 'gpt_oss', found 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', found 'gelu'"),
        ({"attention_bias": False}, "attention_bias must be True, found False"),
        ({"attention_bias": 1}, "attention_bias must be True, found 1"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be False, found True"),
        ({"swiglu_alpha": 1.5}, "swiglu_alpha must be 1.702, found 1.5"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method must be 'mxfp4', found 'fp8'"),
        ({"quantization_config": {}}, "quant_method must be 'mxfp4', found None"),
        ({"quantization_config": [1]}, "quant_method must be 'mxfp4', found [1]"),
        ({"eos_token_id": 201088}, "eos_token_id must be a token id below vocab_size = 201088, found 201088"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id must be a token id below vocab_size = 201088, found '2'"),
        ({"eos_token_id": list(range(65))}, "eos_token_id lists 65 tokens"),
        ({"pad_token_id": -1}, "pad_token_id must be a token id"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)  # fmt: skip
def test_unsupported_values_are_named(changes, message):
    with pytest.raises(CheckpointError) as caught:
        read(changes)
    text = str(caught.value)
    assert text.startswith("folder/config.json: ")
    assert message in text
    assert len(text) < 500


def test_absent_quantization_config_is_left_to_the_tensors():
    assert read({"quantization_config": MISSING}) == read({})
