"""The tests can fail: each mistake one could make about gpt-oss moves the logits far past the tolerance."""

import numpy as np
import pytest

from tests.compare import difference
from tests.model.random_model import native_config, random_arrays, random_config
from tests.model.stepping import run
from tests.model.test_forward import TOLERANCE
from tests.reference import formats, model, ops, rope
from tests.reference.formats import bf16_to_float, float_to_bf16

MISTAKES = {}


def mistake(function):
    """Registers a change to (config, arrays, monkeypatch) that makes the reference wrong."""
    MISTAKES[function.__name__] = function
    return function


def each(arrays, ending, change):
    for name in arrays:
        if name.endswith(ending):
            arrays[name] = change(arrays[name])


@mistake
def no_sinks(config, arrays, patch):
    each(arrays, "sinks", lambda a: float_to_bf16(np.full(a.shape, -1e9)))


@mistake
def sinks_scaled_like_scores(config, arrays, patch):
    each(arrays, "sinks", lambda a: float_to_bf16(bf16_to_float(a) / 8))


@mistake
def sinks_of_base_two(config, arrays, patch):
    each(arrays, "sinks", lambda a: float_to_bf16(bf16_to_float(a) * np.log(2)))


@mistake
def window_one_wider(config, arrays, patch):
    config["windows"] = [w + 1 if w else 0 for w in config["windows"]]


@mistake
def window_one_narrower(config, arrays, patch):
    config["windows"] = [w - 1 if w else 0 for w in config["windows"]]


@mistake
def no_window(config, arrays, patch):
    config["windows"] = [0] * len(config["windows"])


@mistake
def the_other_layers_slide(config, arrays, patch):
    config["windows"] = config["windows"][1:] + config["windows"][:1]


@mistake
def all_layers_slide(config, arrays, patch):
    config["windows"] = [max(config["windows"])] * len(config["windows"])


@mistake
def wrong_attention_scale(config, arrays, patch):
    each(arrays, "q_proj.weight", lambda a: float_to_bf16(bf16_to_float(a) * 1.25))
    each(arrays, "q_proj.bias", lambda a: float_to_bf16(bf16_to_float(a) * 1.25))


@mistake
def heads_dealt_out_in_turn(config, arrays, patch):
    """Query head h with kv head h % kv_heads instead of h // ratio."""
    kv_heads, heads = config["num_key_value_heads"], config["num_attention_heads"]
    order = [h for kv in range(kv_heads) for h in range(kv, heads, kv_heads)]

    def deal(a):
        return np.concatenate([a.reshape(heads, 64, -1)[order]]).reshape(a.shape)

    each(arrays, "q_proj.weight", deal)
    each(arrays, "q_proj.bias", deal)
    each(arrays, "sinks", lambda a: a[order])
    each(arrays, "o_proj.weight", lambda a: a.reshape(len(a), heads, 64)[:, order].reshape(a.shape))


@mistake
def no_yarn(config, arrays, patch):
    config["rope_factor"] = 1.0


@mistake
def yarn_without_its_factor_on_cos_and_sin(config, arrays, patch):
    patch.setattr(model, "yarn", lambda c: (rope.yarn(c)[0], 1.0))


@mistake
def yarn_with_a_rounded_ramp(config, arrays, patch):
    """From dimension 8 to 18, as implementations that truncate have it, instead of 8.09 to 17.4."""
    for name, dimension in (("rope_beta_fast", 8), ("rope_beta_slow", 18)):
        period = 2 * np.pi * config["rope_theta"] ** (dimension / 32)
        config[name] = config["initial_context_length"] / period


@mistake
def wrong_rope_theta(config, arrays, patch):
    config["rope_theta"] = 10_000.0


@mistake
def rope_on_neighbouring_pairs(config, arrays, patch):
    def rotate(x, positions, inv_freq, scale):
        halves = np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
        return rope.rotate(halves, positions, inv_freq, scale)

    patch.setattr(ops, "rotate", rotate)


@mistake
def no_attention_biases(config, arrays, patch):
    each(arrays, "_proj.bias", np.zeros_like)


@mistake
def gate_and_up_swapped(config, arrays, patch):
    patch.setattr(ops, "swiglu", lambda gate, up, limit, right=ops.swiglu: right(up, gate, limit))


@mistake
def gate_and_up_in_halves(config, arrays, patch):
    def halves(a):
        return np.stack(np.split(a, 2, axis=1), axis=2).reshape(a.shape)

    for part in ("blocks", "scales", "bias"):
        each(arrays, f"gate_up_proj_{part}", halves)


@mistake
def nothing_added_to_up(config, arrays, patch):
    patch.setattr(
        ops, "swiglu", lambda gate, up, limit: plain_swiglu(gate, np.clip(up, -limit, limit), limit)
    )


@mistake
def plain_silu(config, arrays, patch):
    patch.setattr(
        ops, "swiglu", lambda gate, up, limit: plain_swiglu(gate, np.clip(up, -7, 7) + 1, limit, 1.0)
    )


@mistake
def no_clamp_of_gate(config, arrays, patch):
    patch.setattr(ops, "swiglu", lambda gate, up, limit: plain_swiglu(gate, np.clip(up, -7, 7) + 1, np.inf))


@mistake
def no_clamp_of_up(config, arrays, patch):
    patch.setattr(ops, "swiglu", lambda gate, up, limit: plain_swiglu(gate, up + 1, limit))


def plain_swiglu(gate, up, limit, alpha=1.702):
    gate = np.minimum(gate, limit)
    return gate / (1 + np.exp(-alpha * gate)) * up


@mistake
def softmax_over_all_experts(config, arrays, patch):
    def moe_gate(residual, norm_weight, eps, weight, bias, chosen, boost, rank):
        normed, expert, _ = right(residual, norm_weight, eps, weight, bias, chosen)
        return normed, expert, np.take_along_axis(ops.softmax(normed @ weight.T + bias), expert, axis=1)

    right = ops.moe_gate
    patch.setattr(ops, "moe_gate", moe_gate)


@mistake
def one_expert_fewer(config, arrays, patch):
    config["num_experts_per_tok"] -= 1


@mistake
def no_router_bias(config, arrays, patch):
    each(arrays, "router.bias", np.zeros_like)


@mistake
def nibbles_swapped(config, arrays, patch):
    each(arrays, "_blocks", lambda a: (a << 4) | (a >> 4))


@mistake
def scale_off_by_one(config, arrays, patch):
    each(arrays, "down_proj_scales", lambda a: a + np.uint8(1))


@mistake
def codes_without_sign(config, arrays, patch):
    patch.setattr(formats, "E2M1", np.abs(formats.E2M1))


@mistake
def wrong_eps(config, arrays, patch):
    config["rms_norm_eps"] = 1e-6


@mistake
def norm_weight_plus_one(config, arrays, patch):
    each(arrays, "norm.weight", lambda a: float_to_bf16(bf16_to_float(a) + 1))


@mistake
def one_position_late(config, arrays, patch):
    """Relative positions survive a shift of all; only keys and queries that disagree show."""
    state = {"calls": 0}

    def rotate(x, positions, inv_freq, scale):
        state["calls"] += 1
        return rope.rotate(x, positions + state["calls"] % 2, inv_freq, scale)

    patch.setattr(ops, "rotate", rotate)


@pytest.fixture(scope="module")
def case(request):
    """A model on which every mistake shows: small embeddings, large expert inputs, an odd window."""
    rng = np.random.default_rng(request.config.test_seed)
    config = random_config(
        rng, hidden_size=96, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=4, sliding_window=9, layer_types=(),
        vocab_size=100,
    )  # fmt: skip
    arrays = random_arrays(rng, config)
    embedding = bf16_to_float(arrays["model.embed_tokens.weight"])
    arrays["model.embed_tokens.weight"] = float_to_bf16(embedding * 0.01)
    each(arrays, "gate_up_proj_scales", lambda a: a + np.uint8(2))
    each(arrays, "down_proj_scales", lambda a: a - np.uint8(3))
    return native_config(config), arrays, rng.integers(0, 100, 60).tolist()


def test_the_unchanged_reference_agrees(cpu, rng, case):
    config, arrays, tokens = case
    trace = model.Trace()
    expected = model.forward(config, arrays, tokens, trace)
    if trace.router_margin > 1e-4:
        found = difference(run(rng, cpu, config, arrays, [tokens])[0], expected)
        assert found.relative <= TOLERANCE, found


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_shows(rng, monkeypatch, case, name):
    from gptoss_native import _native

    config, arrays, tokens = case
    ours = run(rng, _native.Backend(), config, arrays, [tokens])[0]
    config, arrays = dict(config), dict(arrays)
    MISTAKES[name](config, arrays, monkeypatch)
    found = difference(ours, model.forward(config, arrays, tokens))
    assert found.relative_norm > 50 * TOLERANCE, f"{name} went unnoticed: {found}"
