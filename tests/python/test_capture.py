"""Looking inside. Oracle: the float64 reference's residual stream, router and attention."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from gptoss_native import LLM, Capture, SamplingParams, SteeringVector
from gptoss_native import _native as native_module
from gptoss_native.capture import Recorder, WatchedLayers, captured_bytes
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.errors import RequestError

from tests.checkpoints import write_tiny
from tests.compare import assert_close
from tests.model.random_model import native_config, random_arrays, random_config
from tests.python.test_adapters import is_free
from tests.reference import model as reference
from tests.reference import ops
from tests.reference.rope import yarn

SETTINGS = {"max_model_len": 96, "page_size": 16, "max_num_batched_tokens": 24, "max_num_seqs": 4}
DEVICES = [device for device in native_module.devices() if device != "cuda"]


def reference_attention(config, arrays, layer, residual):
    """[tokens, heads, tokens] from the residual stream before the layer."""
    w, name = reference.decode(arrays), f"model.layers.{layer}."
    inv_freq, scale = yarn(config)
    q, k, v = ((w[f"{name}self_attn.{p}_proj.weight"], w[f"{name}self_attn.{p}_proj.bias"]) for p in "qkv")
    positions = np.arange(len(residual))
    norm = w[name + "input_layernorm.weight"]
    queries, keys, _ = ops.attention_in(
        residual, norm, config["rms_norm_eps"], q, k, v, positions, inv_freq, scale
    )
    keys = np.repeat(keys, queries.shape[1] // keys.shape[1], axis=1)
    scores = np.einsum("rhd,khd->rhk", queries, keys) / 8
    distance, window = positions[:, None] - positions, config["windows"][layer]
    visible = (distance >= 0) & ((distance < window) if window else True)
    weights = np.exp(np.where(visible[:, None], scores, -np.inf))
    return weights / (weights.sum(-1, keepdims=True) + np.exp(w[name + "self_attn.sinks"])[:, None])


def drawn_case(tmp_path, rng):
    """A random model, and tokens at which no expert is chosen by a hair."""
    for _ in range(20):
        config = random_config(rng, num_local_experts=6, num_experts_per_tok=2)
        arrays, tokens = random_arrays(rng, config), rng.integers(0, config.vocab_size, 50).tolist()
        trace = reference.Trace()
        reference.forward(native_config(config), arrays, tokens, trace)
        if trace.router_margin > 1e-4:
            break
    write_checkpoint(tmp_path / "model", config, arrays)
    return tmp_path / "model", config, arrays, tokens, trace


def test_what_is_captured_is_what_the_reference_goes_through(tmp_path, rng):
    """Prompt in chunks of 24, then decoded; attention of full and of sliding layers, across pages."""
    folder, config, arrays, tokens, trace = drawn_case(tmp_path, rng)
    everything = Capture(residual=True, router=True, attention=True)
    with LLM(folder, device="cpu", numerics="exact", **SETTINGS) as llm:
        params = SamplingParams(temperature=0, max_tokens=1, capture=everything)
        found = llm.generate([tokens], params)[0].outputs[0].captured
        for layer in range(config.num_hidden_layers):
            what = f"layer {layer}"
            assert_close(found.residual[layer], trace.residual[layer + 1], 1e-5, f"residual, {what}")
            expected = reference_attention(native_config(config), arrays, layer, trace.residual[layer])
            assert_close(found.attention[layer], expected, 2e-5, f"attention, {what}")
            np.testing.assert_allclose(found.router[layer].weight.sum(axis=1), 1, rtol=1e-6)
        grown = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, capture=everything)
        output = llm.generate([tokens], grown)[0].outputs[0]
        tokens = tokens + output.token_ids[:-1]
        trace = reference.Trace()
        reference.forward(native_config(config), arrays, tokens, trace)
        for layer, residual in output.captured.residual.items():
            assert len(residual) == len(tokens)
            if trace.router_margin > 1e-4:
                assert_close(
                    residual, trace.residual[layer + 1], 1e-5, f"residual with its answer, layer {layer}"
                )
            assert output.captured.attention[layer].shape[::2] == (len(tokens), len(tokens))


def test_the_router_s_choice_is_the_reference_s(tmp_path, rng):
    folder, _, _, tokens, trace = drawn_case(tmp_path, rng)
    with LLM(folder, device="cpu", numerics="exact", **SETTINGS) as llm, llm.expert_usage() as usage:
        params = SamplingParams(temperature=0, max_tokens=1, capture=Capture(router=[0]))
        found = llm.generate([tokens], params)[0].outputs[0].captured
    assert found.residual == found.attention == {}
    expert, weight = trace.choices[0]
    np.testing.assert_array_equal(found.router[0].expert, expert)
    assert_close(found.router[0].weight, weight, 1e-5, "routing weights")
    for layer, (expert, weight) in enumerate(trace.choices):
        np.testing.assert_array_equal(usage.counts[layer], np.bincount(expert.reshape(-1), minlength=6))
        bits = -np.sum([[w * np.log2(w) for w in token] for token in weight], axis=1)
        assert usage.router_entropy[layer] == pytest.approx(bits.mean(), rel=1e-3)
    assert usage.tokens == len(tokens)
    share = usage.share[0]
    np.testing.assert_allclose(usage.entropy[0], -sum(p * np.log2(p) for p in share if p > 0))


@pytest.mark.parametrize("device", DEVICES)
def test_looking_changes_nothing(tmp_path, rng, device):
    """Tokens and log-probabilities beside and of a watched request; equal prompts are run, not looked up."""
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", device=device, **SETTINGS) as llm:
        prompt = rng.integers(0, 40, 40).tolist()
        plain = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=5)
        watched = SamplingParams(
            temperature=0, max_tokens=6, ignore_eos=True, logprobs=5, capture=Capture(True, True, True)
        )
        alone = llm.generate([prompt], plain)[0].outputs[0]
        a, b = (each.outputs[0] for each in llm.generate([prompt, prompt], [plain, watched]))
        for found in (a, b):
            assert (found.token_ids, found.logprobs) == (alone.token_ids, alone.logprobs)
        assert a.captured is None
        assert len(b.captured.residual[0]) == 45


def test_a_preempted_request_has_captured_everything_once(tmp_path, rng):
    """A cache for hardly more than one: what ran twice is there once, as it ran alone."""
    write_tiny(tmp_path / "model", rng)
    prompts = [rng.integers(0, 40, 30).tolist() for _ in range(3)]
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, capture=Capture(residual=[1]))
    with LLM(tmp_path / "model", device="cpu", kv_cache_tokens=96, **SETTINGS) as llm:
        together = llm.generate(prompts, params)
        assert llm.engine.scheduler.preemptions > 0
        for prompt, output in zip(prompts, together, strict=True):
            alone = llm.generate([prompt], params)[0].outputs[0]
            np.testing.assert_array_equal(output.outputs[0].captured.residual[1], alone.captured.residual[1])


def test_a_vector_is_the_difference_of_means(tmp_path, rng):
    folder, config, _, _, _ = drawn_case(tmp_path, rng)
    texts = [rng.integers(0, config.vocab_size, int(rng.integers(3, 12))).tolist() for _ in range(5)]
    with LLM(folder, device="cpu", numerics="exact", **SETTINGS) as llm:
        vector = llm.extract_steering(texts[:2], texts[2:], layers=[1])
        assert list(vector) == [1]
        last = []
        for tokens in texts:
            params = SamplingParams(max_tokens=1, capture=Capture(residual=[1]))
            last.append(llm.generate([tokens], params)[0].outputs[0].captured.residual[1][-1])
        expected = np.mean(last[:2], axis=0) - np.mean(last[2:], axis=0)
        np.testing.assert_allclose(vector[1], expected, rtol=1e-5, atol=1e-6)
        assert isinstance(llm.extract_steering(texts[:1], texts[1:]), SteeringVector)
        with pytest.raises(RequestError, match="both lists need a prompt"):
            llm.extract_steering([], texts)


def test_wrong_captures_are_refused(tmp_path, rng, monkeypatch):
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        for make, words in [
            (lambda: Capture(residual=1), "residual must be a list"),
            (lambda: Capture(router=["all"]), "found 'all' in it"),
            (lambda: SamplingParams(capture=["residual"]), "capture must be a Capture"),
            (lambda: llm.generate([[1]], SamplingParams(capture=Capture(attention=[2]))), "layers 0 to 1"),
        ]:
            with pytest.raises(RequestError, match=words):
                make()
        usage = llm.expert_usage()
        with pytest.raises(RequestError, match="is being counted already"):
            llm.expert_usage()
        usage.stop()
        llm.expert_usage().stop()
        from gptoss_native import capture
        from gptoss_native.host_memory import HostMemory

        monkeypatch.setattr(capture, "host_memory", lambda: HostMemory(1000, 1000))
        with pytest.raises(RequestError, match="1,000 are free; capture fewer layers"):
            llm.generate([[1, 2]], SamplingParams(capture=Capture(residual=True)))


def test_nothing_of_a_capture_outlives_its_answer(tmp_path, rng):
    """Neither the request, nor what it has seen, nor pages that only texts like it could find."""
    write_tiny(tmp_path / "model", rng)
    params = SamplingParams(temperature=0, max_tokens=2, capture=Capture(True, True, True))
    plain = SamplingParams(temperature=0, max_tokens=1)
    with LLM(tmp_path / "model", device="cpu", kv_cache_tokens=96, **SETTINGS) as llm:
        common = rng.integers(0, 40, 48).tolist()
        llm.generate([[*common, 1]], plain)
        llm.generate([rng.integers(0, 40, 40).tolist()], params)
        llm.generate([rng.integers(0, 40, 40).tolist()], params)
        before = llm.engine.scheduler.cached_tokens
        llm.generate([[*common, 2]], plain)
        assert llm.engine.scheduler.cached_tokens - before == 48
        output = llm.generate([common], params)[0]
        seen = weakref.ref(output.outputs[0].captured.residual[0])
        assert is_free(lambda: next((o for o in gc.get_objects() if isinstance(o, Recorder)), None))
        del output
        assert is_free(seen)


def test_a_count_that_is_stopped_twice_stops_no_other(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        old = llm.expert_usage()
        old.stop()
        with llm.expert_usage() as new:
            old.stop()
            llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=1))
        assert (old.tokens, new.tokens) == (0, 3)


def test_what_was_promised_to_others_is_not_promised_again(tmp_path, rng, monkeypatch):
    """Of memory for one and a half; the second is refused until the first has ended. Nothing takes more."""
    from gptoss_native import capture
    from gptoss_native.host_memory import HostMemory

    write_tiny(tmp_path / "model", rng)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, capture=Capture(True, True, True))
    prompt = rng.integers(0, 40, 60).tolist()
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        layers = WatchedLayers((0, 1), (0, 1), (0, 1))
        need = captured_bytes(layers, llm.config, 80, SETTINGS["max_num_batched_tokens"])
        llm.generate([prompt], params)
        tracemalloc.start()
        llm.generate([prompt], params)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert need / 3 < most < need + (1 << 20)
        monkeypatch.setattr(capture, "host_memory", lambda: HostMemory(1 << 40, need * 3 // 2))
        stream = llm.stream(prompt, params)
        next(stream)
        with pytest.raises(RequestError, match="are free; capture fewer layers"):
            llm.generate([prompt], params)
        for _ in stream:
            pass
        llm.generate([prompt], params)
