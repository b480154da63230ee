"""LLM on a tiny random model and on the demo; the oracles are the reference and plain recomputation."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
from gptoss_native import LLM, Capture, ChatOutput, CheckpointError, RequestError, SamplingParams, StreamDelta
from gptoss_native.checkpoint.locate import DEMO
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.plan import native_config, plan

from tests.checkpoints import TINY, random_arrays, tiny_config, write_tiny
from tests.python.test_adapters import write_adapter
from tests.reference.model import forward

GREEDY = SamplingParams(temperature=0, max_tokens=12)
CONFIG = tiny_config(vocab_size=288, num_local_experts=5, num_experts_per_tok=4)
QUESTION = [{"role": "user", "content": "What is 47 + 18?"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, request):
    """A folder with random weights and the demo's byte-level tokenizer, and the weights."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    arrays = random_arrays(CONFIG, np.random.default_rng(request.config.test_seed))
    write_checkpoint(folder, CONFIG, arrays, "huggingface", None)
    shutil.copy(DEMO / "tokenizer.json", folder)
    return folder, arrays


@pytest.fixture(scope="module")
def llm(tiny):
    with LLM(tiny[0], numerics="exact", max_model_len=256, max_num_seqs=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def demo():
    with LLM("demo", max_model_len=1024) as llm:
        yield llm


def test_logits_and_score_are_those_of_the_reference(tiny, llm, rng):
    ids = rng.integers(0, 288, 60)
    expected = forward(native_config(CONFIG), tiny[1], ids)
    found = llm.logits(ids)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    logprobs = expected - expected.max(1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(1, keepdims=True))
    [score] = llm.score([ids.tolist()])
    np.testing.assert_allclose(score.logprobs, logprobs[np.arange(59), ids[1:]], atol=1e-4)
    assert score.total == pytest.approx(sum(score.logprobs))
    assert score.perplexity == pytest.approx(np.exp(-np.mean(score.logprobs)))
    assert llm.score([[5]])[0].perplexity == 1.0


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_batched_tokens": 5, "max_num_seqs": 3}, {"max_num_seqs": 1}]
)
def test_greedy_is_the_argmax_of_the_logits_however_it_is_batched(tiny, llm, rng, settings):
    prompts = [rng.integers(0, 288, int(length)).tolist() for length in rng.integers(1, 50, 6)]
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(8):
            tokens.append(int(llm.logits(tokens)[-1].argmax()))
        expected.append(tokens[len(prompt) :])
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM(tiny[0], numerics="exact", max_model_len=64, **settings) as other:
        found = [output.outputs[0].token_ids for output in other.generate(prompts, params)]
    assert found == expected


def test_same_seed_same_output_whatever_else_runs(llm):
    params = SamplingParams(seed=3, max_tokens=20, ignore_eos=True)
    alone = llm.generate("hello", params)[0].outputs[0].token_ids
    crowd = llm.generate(["a", "hello", "bcd" * 20], [SamplingParams(seed=1, max_tokens=9), params, params])
    assert crowd[1].outputs[0].token_ids == alone
    several = llm.generate("hello", SamplingParams(seed=3, max_tokens=20, ignore_eos=True, n=3))[0].outputs
    assert several[0].token_ids == alone
    assert len({tuple(answer.token_ids) for answer in several}) == 3
    assert [answer.index for answer in several] == [0, 1, 2]


def test_requests_without_a_seed_repeat_with_the_program(tiny):
    def run(seed):
        with LLM(tiny[0], max_model_len=64, seed=seed) as llm:
            return [
                llm.generate("x", SamplingParams(max_tokens=10))[0].outputs[0].token_ids for _ in range(2)
            ]

    first, second = run(0)
    assert first != second
    assert run(0) == [first, second]
    assert run(1) != [first, second]


def test_generate_reports_text_ids_and_reasons(llm):
    [output] = llm.generate("abc", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2))
    answer = output.outputs[0]
    assert (output.prompt, output.prompt_token_ids, output.finished) == ("abc", [97, 98, 99], True)
    assert (answer.finish_reason, answer.stop_reason, len(answer.token_ids)) == ("length", None, 5)
    plain = [token for token in answer.token_ids if token not in llm.tokenizer.special_ids]
    known = all(token < llm.tokenizer.n_vocab for token in plain)
    assert not known or answer.text == llm.tokenizer.decode(plain)
    for token, place in zip(answer.token_ids, answer.logprobs, strict=True):
        assert place[token].rank == 1
        assert len(place) == 2
    assert output.text == answer.text


def test_a_stop_string_ends_the_text_before_it_and_streams_the_same(llm):
    params = SamplingParams(seed=1, max_tokens=60, ignore_eos=True)
    full = llm.generate("abc", params)[0].outputs[0].text
    stop = full[10:13]
    expected = full[: full.index(stop)]
    for include in (False, True):
        cut = SamplingParams(
            seed=1, max_tokens=60, ignore_eos=True, stop=stop, include_stop_str_in_output=include
        )
        answer = llm.generate("abc", cut)[0].outputs[0]
        assert answer.text == expected + (stop if include else "")
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        deltas = list(llm.stream("abc", cut))
        assert "".join(delta.text for delta in deltas) == answer.text
        assert deltas[-1].output == answer


def test_logit_bias_stop_tokens_and_min_tokens(llm):
    bias = {65: 100.0}
    answer = llm.generate("a", SamplingParams(temperature=0, max_tokens=4, logit_bias=bias))[0].outputs[0]
    assert answer.text == "AAAA"
    stop = SamplingParams(
        temperature=0, max_tokens=9, logit_bias={**bias, 66: 90.0}, stop_token_ids=[65], min_tokens=3
    )
    answer = llm.generate("a", stop)[0].outputs[0]
    assert answer.token_ids == [66, 66, 66, 65]
    assert (answer.text, answer.stop_reason) == ("BBB", 65)


def test_the_context_ends_the_answer(tiny):
    with LLM(tiny[0], max_model_len=20) as llm:
        answer = llm.generate("a" * 15, SamplingParams(ignore_eos=True))[0].outputs[0]
        assert (len(answer.token_ids), answer.finish_reason) == (5, "length")
        with pytest.raises(RequestError, match=r"20 tokens, max_model_len is 20"):
            llm.generate("a" * 20)
        assert llm.logits("a" * 20).shape == (20, 288)
        with pytest.raises(RequestError, match=r"21 tokens, max_model_len is 20"):
            llm.logits("a" * 21)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.generate(""), "empty"),
        (lambda llm: llm.generate([[1, 288]]), "token 1 of the prompt is 288"),
        (lambda llm: llm.generate([[-1]]), "-1"),
        (lambda llm: llm.generate(5), "found int"),
        (lambda llm: llm.generate(QUESTION), "use chat"),
        (lambda llm: llm.generate(["a", "b"], [GREEDY]), "1 SamplingParams for 2 prompts"),
        (lambda llm: llm.generate("a", {"temperature": 0}), "found dict"),
        (lambda llm: llm.generate("a", SamplingParams(stop_token_ids=[288])), "288"),
        (lambda llm: llm.chat("hello"), "messages must be a list"),
        (lambda llm: llm.chat(QUESTION, tool=[]), "tool is no option"),
        (lambda llm: llm.chat([{"role": "king", "content": "x"}]), "king"),
        (lambda llm: llm.stream(["a", "b"]), "one prompt, found 2"),
        (lambda llm: llm.stream("a", SamplingParams(n=2)), "n = 2"),
        (lambda llm: llm.stream("a", tools=[]), "tools is an option of conversations"),
    ],
)
def test_bad_requests_are_refused_at_once(llm, call, message):
    with pytest.raises(RequestError, match=message):
        call(llm)


@pytest.mark.parametrize(
    "settings",
    [
        {"numerics": "rough"},
        {"max_model_len": 0},
        {"max_model_len": 1 << 20},
        {"threads": -1},
        {"max_num_seqs": 0},
        {"max_num_seqs": 600},
        {"page_size": 20},
        {"page_size": 272},
        {"seed": -1},
        {"max_model_len": 100, "kv_cache_tokens": 99},
    ],
)
def test_bad_settings_are_refused(tiny, settings):
    with pytest.raises(RequestError, match=next(iter(settings))):
        LLM(tiny[0], **settings)


def test_the_cache_is_the_one_that_was_planned(tiny):
    with LLM(tiny[0], max_model_len=100, max_num_seqs=3, max_num_batched_tokens=40, numerics="fast") as llm:
        found = plan(CONFIG, context=100, sequences=3, max_batch_tokens=40, numerics="fast")
        assert llm.engine.cache.nbytes == found.kv_full_bytes + found.kv_window_bytes


def test_a_missing_checkpoint_and_a_closed_llm(tiny):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        LLM("/nowhere/at/all")
    llm = LLM(tiny[0], max_model_len=32)
    llm.close()
    with pytest.raises(RequestError, match="closed"):
        llm.generate("a")


def test_chat_is_parsed_and_streams_what_it_returns(demo):
    [output] = demo.chat(QUESTION, SamplingParams(temperature=0, max_tokens=300))
    assert isinstance(output, ChatOutput)
    answer = output.outputs[0]
    assert answer.finish_reason == "stop"
    assert not answer.recoveries
    assert output.content == answer.text == answer.messages[-1].content
    assert output.message["content"] == output.content
    deltas = list(demo.stream(QUESTION, SamplingParams(temperature=0, max_tokens=300)))
    by_channel = {}
    for delta in deltas[:-1]:
        by_channel[delta.channel] = by_channel.get(delta.channel, "") + delta.text
    assert by_channel.get("final", "") == output.content
    assert by_channel.get("analysis", "") == output.reasoning
    assert deltas[-1].output.token_ids == answer.token_ids


def test_a_stream_can_be_closed_between_the_steps_of_its_prompt(tiny):
    with LLM(tiny[0], max_model_len=128, max_num_seqs=1, max_num_batched_tokens=1) as llm:
        deltas = llm.stream([1] * 100, SamplingParams(max_tokens=1))
        assert next(deltas) == StreamDelta()
        deltas.close()
        llm.generate([[2]], SamplingParams(max_tokens=1))
        assert llm.engine.steps_run < 90


def test_several_conversations_in_one_batch_are_answered_as_each_alone(demo):
    conversations = [[{"role": "user", "content": f"What is {n} + 9?"}] for n in range(5)]
    params = SamplingParams(temperature=0, max_tokens=120)
    together = [output.outputs[0].token_ids for output in demo.chat(conversations, params)]
    alone = [demo.chat(conversation, params)[0].outputs[0].token_ids for conversation in conversations]
    assert together == alone


def test_importing_loads_nothing_that_is_not_needed_yet():
    """`import gptoss_native` beside what Python and NumPy load anyhow; bench/startup.py in it times that."""
    code = (
        "import sys, numpy; before = set(sys.modules); import gptoss_native;"
        "print(*sorted(name.partition('.')[0] for name in set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "tiktoken",
        "regex",
        "requests",
        "asyncio",
        "http",
        "urllib",
        "ssl",
        "jinja2",
        "starlette",
        "uvicorn",
    }
    assert not heavy & set(run.stdout.split())
    native = "import sys, gptoss_native; print('gptoss_native._native' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", native], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_messages_can_be_sent_back_as_json(demo):
    output = demo.chat(QUESTION, SamplingParams(temperature=0, max_tokens=300))[0]
    conversation = [
        *QUESTION,
        json.loads(json.dumps(output.message)),
        {"role": "user", "content": "And 1 + 1?"},
    ]
    assert demo.chat(conversation, GREEDY)[0].outputs[0].token_ids


def test_a_closed_model_lets_go_of_its_memory(tmp_path, rng):
    """Also when its numbers were edited, looked into and adapted; what needs them then says so."""
    write_tiny(tmp_path / "model", rng)
    write_adapter(tmp_path / "lora", rng, TINY)
    llm = LLM(tmp_path / "model", device="cpu", max_model_len=64)
    llm.adapters.load("x", tmp_path / "lora")
    looks = SamplingParams(max_tokens=3, adapter="x", capture=Capture(residual=[0], attention=[1]))
    llm.generate([[1, 2, 3]], looks)
    with llm.edit() as edit:
        edit.scale("layers.0.sinks", 2)
    parameter, adapter = llm.parameters["layers.0.sinks"], llm.adapters["x"]
    held = {what: weakref.ref(it) for what, it in (
        ("model", llm.engine.model), ("cache", llm.engine.cache), ("adapter", adapter.native)
    )}  # fmt: skip
    llm.close()
    del adapter
    for _ in range(100):
        gc.collect()
        left = [what for what, it in held.items() if it() is not None]
        if not left:
            break
        time.sleep(0.05)  # the engine's thread may be about to end
    assert not left
    for use in (parameter.decode, llm.diff, llm.undo, lambda: llm.adapters.load("x", tmp_path / "lora")):
        with pytest.raises(RequestError, match="this LLM has been closed"):
            use()
