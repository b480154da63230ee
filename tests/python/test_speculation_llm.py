"""Drafts in an LLM: what it generates. Oracle: an LLM without them, bit for bit, on each device there is."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from gptoss_native import (
    LLM,
    AsyncLLM,
    Capture,
    ExpertControl,
    RequestError,
    SamplingParams,
    StructuredOutputsParams,
    _native,
)
from gptoss_native.cli import main

from tests.checkpoints import write_tiny
from tests.python.fake_native import SteadyCosts

VOCAB = 40
CONFIG = {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, np.random.default_rng(request.config.test_seed))
    return folder


def llm_of(model, config, device="cpu", **settings):
    llm = LLM(model, device=device, threads=1, speculative_config=config, **settings)
    if config is not None:
        llm.engine.speculation.costs = SteadyCosts()
    return llm


def guess_eagerly(speculation, rng):
    """Have it run any number of guesses, whether that pays or not: many of them are wrong."""
    speculation._best = lambda drafter, tokens, factors: (int(rng.integers(len(factors))), 0.0)


def numbers(outputs):
    """Everything about answers that may not change."""
    return [
        (
            answer.token_ids,
            answer.text,
            answer.finish_reason,
            answer.stop_reason,
            answer.cumulative_logprob,
            [
                {token: (found.logprob, found.rank) for token, found in place.items()}
                for place in answer.logprobs
            ],
        )
        for output in outputs
        for answer in output.outputs
    ]


@pytest.mark.parametrize("device", _native.devices())
def test_answers_keep_every_bit(device, tiny, rng):
    """Greedy ones, which loop at once in a model so small, and sampled ones with what a draw can ask for."""
    prompts = [rng.integers(0, VOCAB, int(rng.integers(3, 20))).tolist() * 2 for _ in range(8)]
    kinds = [
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.02, "logit_bias": {3: -1.0}},
        {"temperature": 0, "min_tokens": 10, "stop_token_ids": [int(rng.integers(VOCAB))]},
        {"temperature": 0, "stop": ["a", "the"]},
        {"temperature": 0.05, "n": 3},
        {"temperature": 0.1, "top_p": 0.9, "presence_penalty": 0.01, "frequency_penalty": 0.01},
        {"temperature": 0.3, "top_k": 5, "min_p": 0.01},
        {"temperature": 0, "experts": ExpertControl(mask=[1], layers=[0])},
    ]
    params = [
        SamplingParams(max_tokens=40, ignore_eos=True, logprobs=2, seed=number, **kind)
        for number, kind in enumerate(kinds)
    ]
    found = []
    # Barely room for the longest two: some are preempted and start over.
    settings = {"max_model_len": 96, "kv_cache_tokens": 208, "max_num_seqs": 4, "page_size": 16}
    for config in (None, CONFIG):
        with llm_of(tiny, config, device, max_num_batched_tokens=48, **settings) as llm:
            found.append(numbers(llm.generate(prompts, params)))
            if config is not None:
                guess_eagerly(speculation := llm.engine.speculation, rng)
            found[-1] += numbers(llm.generate(prompts, params))  # with pages of the first time
            assert llm.engine.scheduler.preemptions
    assert found[1] == found[0]
    assert speculation.accepted > 20
    assert speculation.drafted - speculation.accepted > 20


def test_conversations_and_bound_answers_of_the_bundled_model():
    """Every chat keeps special tokens in their places, and this one's calls and answers follow grammars."""
    text = "reverse the letters of: abcabcabc"
    asks = [[{"role": "user", "content": f"{text}"}], [{"role": "user", "content": "Sort 5, 3, 9, 5, 3, 9."}]]
    choice = StructuredOutputsParams(choice=["one two three one two three one two three one two three"] * 1)
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"enum": [1, 2]}, "minItems":
    12,
              "maxItems": 12}}, "required": ["a"], "additionalProperties": False}  # fmt: skip
    params = [
        SamplingParams(temperature=0, logprobs=1, max_tokens=150),
        SamplingParams(temperature=0.7, seed=1, logprobs=1, max_tokens=150),
        SamplingParams(temperature=0, logprobs=1, structured_outputs=choice, max_tokens=150),
        SamplingParams(
            temperature=0.5, seed=2, logprobs=1, structured_outputs=StructuredOutputsParams(json=schema)
        ),
    ]
    found = []
    for config in (None, CONFIG):
        with llm_of("demo", config, max_model_len=512) as llm:
            chats = [numbers(llm.chat(asks, one)) for one in params]
            plain = numbers(llm.generate(["one two three one two"] * 2, params[2:]))
            found.append((chats, plain))
            speculation = llm.engine.speculation
    assert found[1] == found[0]
    assert speculation.accepted > 10


def test_one_that_looks_inside_and_what_is_counted_see_each_token_once(tiny):
    prompt, params = [1, 2, 3] * 6, {"temperature": 0, "max_tokens": 30, "ignore_eos": True}
    found = []
    for config in (None, CONFIG):
        with llm_of(tiny, config, max_model_len=96) as llm:
            capture = SamplingParams(capture=Capture(residual=True, router=True), **params)
            captured = llm.generate(prompt, capture)[0].outputs[0].captured
            with llm.expert_usage() as usage:
                llm.generate(prompt, SamplingParams(**params))
            found.append((captured, usage))
            drafted = llm.engine.speculation.drafted if config else 0
            llm.generate(prompt, SamplingParams(**params))
            assert not config or llm.engine.speculation.drafted > drafted == 0
    (captured, usage), (drafting, counted) = found
    assert all(
        np.array_equal(captured.residual[layer], drafting.residual[layer]) for layer in captured.residual
    )
    assert np.array_equal(usage.counts, counted.counts)
    assert usage.tokens == counted.tokens


def test_a_stream_gives_all_tokens_of_a_step_and_the_service_counts_them(tiny):
    prompt, params = [1, 2, 3] * 6, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)

    async def run():
        llm = AsyncLLM(tiny, threads=1, max_model_len=96, speculative_config=CONFIG)
        llm._engine.speculation.costs = SteadyCosts()
        text = ""
        async for delta in llm.generate(prompt, params):
            text += delta.text
            last = delta
        stats = llm.stats()
        await llm.shutdown()
        return text, last.output, stats

    text, output, stats = asyncio.run(run())
    with LLM(tiny, threads=1, max_model_len=96) as llm:
        assert output.token_ids == llm.generate(prompt, params)[0].outputs[0].token_ids
    assert text == output.text
    assert stats["spec_decode_num_draft_tokens"] >= stats["spec_decode_num_accepted_tokens"] > 0
    assert stats["steps"] < 60


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("ngram", "must be a dict, found 'ngram'"),
        ([("method", "ngram")], "must be a dict"),
        ({"method": "eagle"}, "method must be 'ngram', found 'eagle'"),
        ({"method": None}, "method must be 'ngram', found None"),
        ({"model": "x"}, "has 'model', expected some of method, num_speculative_tokens"),
        ({1: 2}, "has 1, expected"),
        (
            {"num_speculative_tokens": 0},
            "num_speculative_tokens must be a whole number from 1 to 64, found 0",
        ),
        ({"num_speculative_tokens": 65}, "found 65"),
        ({"num_speculative_tokens": True}, "found True"),
        ({"num_speculative_tokens": 1.0}, "found 1.0"),
        ({"num_speculative_tokens": None}, "found None"),
        ({"prompt_lookup_max": 33}, "prompt_lookup_max must be a whole number from 1 to 32"),
        ({"prompt_lookup_min": 0}, "prompt_lookup_min must be"),
        (
            {"prompt_lookup_max": 2, "prompt_lookup_min": 3},
            "prompt_lookup_min is 3, more than prompt_lookup_max 2",
        ),
    ],
)
def test_a_bad_setting_is_named(config, message, tiny):
    with pytest.raises(RequestError, match=message):
        LLM(tiny, speculative_config=config)


def test_the_command_takes_it_as_json(capsys):
    ask = ["generate", "demo", "one two one two one", "--temperature", "0", "--max-tokens", "12"]
    texts = []
    for flags in (
        [],
        ["--speculative-config", '{"num_speculative_tokens": 4}'],
        ["--speculative-config", "null"],
    ):
        assert main([*ask, *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    for value, message in (
        ("{", "--speculative-config must be JSON"),
        ('{"method": "x"}', "--speculative-config.method must be"),
        ("[]", "--speculative-config must be a dict"),
    ):
        assert main([*ask, "--speculative-config", value]) == 2
        assert message in capsys.readouterr().err
