"""What vLLM's users pass, progress, and results that are not finite. Oracle: the plain calls."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from gptoss_native import LLM, RequestError, SamplingParams, progress
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.host_memory import HostMemory
from gptoss_native.scoring import LogitRows, TokenLogprobs

from tests.checkpoints import TINY, random_arrays

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def demo():
    with LLM("demo", max_model_len=256, threads=1) as llm:
        yield llm


def tokens(outputs):
    return [(output.prompt, output.prompt_token_ids, output.outputs[0].token_ids) for output in outputs]


def test_vllms_prompt_dicts_are_what_they_hold(demo):
    texts, ids = tokens(demo.generate(["1 + 1", [5, 6, 7]], GREEDY))
    as_text, as_ids = {"prompt": "1 + 1"}, {"prompt_token_ids": [5, 6, 7]}
    assert tokens(demo.generate(as_text, GREEDY)) == [texts]
    assert tokens(demo.generate(as_ids, GREEDY)) == [ids]
    both = {"prompt": "for people to read", "prompt_token_ids": np.array([5, 6, 7])}
    assert tokens(demo.generate([as_text, "1 + 1", as_ids, both, [5, 6, 7]], GREEDY)) == [
        texts,
        texts,
        ids,
        ids,
        ids,
    ]
    assert list(demo.stream(as_ids, GREEDY))[-1].output.token_ids == ids[2]
    assert demo.score([as_ids]) == demo.score([[5, 6, 7]])
    np.testing.assert_array_equal(demo.logits(as_ids), demo.logits([5, 6, 7]))


@pytest.mark.parametrize(
    "prompt",
    [{}, {"prompt": None}, {"prompt": 5}, {"prompt_token_ids": "a"}, {"prompt": "a", "multi_modal_data": 1}],
)
def test_other_dicts_are_refused(demo, prompt):
    for call in (demo.generate, demo.score, demo.logits, demo.stream):
        with pytest.raises(RequestError, match="found dict"):
            call(prompt)
    with pytest.raises(RequestError, match="found list of dict"):
        demo.generate([prompt])


@pytest.mark.parametrize("call", ["logits", "stream"])
def test_what_takes_one_prompt_says_how_many_it_got(demo, call):
    with pytest.raises(RequestError, match="one prompt, found 2"):
        getattr(demo, call)(["a", "b"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_use_tqdm_counts_answers_on_a_terminal(demo, monkeypatch):
    monkeypatch.setattr(progress.ProgressBar.__init__, "__defaults__", (None, 0.0, True))
    question = [{"role": "user", "content": "1 + 1?"}]
    params = SamplingParams(temperature=0, max_tokens=6, n=3)
    expected = tokens(demo.generate(["a", "b"], params))
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert tokens(demo.generate(["a", "b"], params, use_tqdm=True)) == expected
        assert ("answers [########################] 6 of 6, " in stream.getvalue()) == drawn
        demo.chat(question, params, use_tqdm=True)
        assert ("3 of 3, " in stream.getvalue()) == drawn
        drawn_before = stream.getvalue()
        demo.generate("a", params, use_tqdm=False)
        demo.generate("a", params)
        assert stream.getvalue() == drawn_before
    for call, prompt in ((demo.generate, "a"), (demo.chat, question)):
        with pytest.raises(RequestError, match="use_tqdm must be True or False, found 1"):
            call(prompt, params, use_tqdm=1)


def test_scores_that_are_not_finite_are_named_and_logits_show_them(tmp_path, rng):
    """A NaN in the embedding of one token: nothing from its first place on is a number."""
    arrays = random_arrays(TINY, rng)
    arrays["model.embed_tokens.weight"][7, 3] = 0x7FC0
    write_checkpoint(tmp_path, TINY, arrays)
    with LLM(tmp_path, max_model_len=32, threads=1) as llm:
        finite = llm.score([1, 2, 3, 4])
        assert np.isfinite(finite[0].logprobs).all()
        with pytest.raises(RequestError, match="token 3 of prompt 1 is nan, expected a finite number"):
            llm.score([[1, 2, 3, 4], [1, 2, 7, 4, 5]])
        assert llm.score([1, 2, 3, 4]) == finite
        assert np.isfinite(llm.logits([1, 2, 7, 4, 5])).all(1).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_log_probability_that_is_not_finite_is_found_wherever_it_comes_from(bad, rng):
    logits = rng.standard_normal((5, 9), np.float32)
    text = TokenLogprobs([0, 1, 2, 3, 4])
    logits[2, 3] = bad  # of the token that follows
    text.take(logits[:2])
    text.take(logits[2:])
    with pytest.raises(RequestError, match=r"token 3 of prompt 0 is (nan|-inf)"):
        text.check_finite(0)


def test_logits_beyond_the_memory_are_refused_with_their_size():
    with pytest.raises(RequestError, match=r"take 105,428,025,344 bytes, more than the 34,359,738,368"):
        LogitRows(131_072, 201_088, HostMemory(64 << 30, 32 << 30))
    with pytest.raises(RequestError, match=r"bytes, not to be had; shorten the prompt, or use score\(\)"):
        LogitRows(1 << 40, 201_088, None)  # where the memory is not known, the system decides
