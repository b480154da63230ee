"""Contexts that benches decode after. Oracle: the steps after a context that has really been computed."""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native import LLM
from gptoss_native.bench import contexts
from gptoss_native.bench.whole_model import decode_points, decode_steps
from gptoss_native.errors import RequestError
from gptoss_native.kv_cache import NOT_HELD

CHUNK = 128
NAMES = ("tokens", "row_start", "context", "full_pages", "window_pages", "logit_rows", "decoding")


class Spy:
    """A native model that notes what it is asked for, and whether the answers are numbers."""

    def __init__(self, model):
        self._model, self.steps, self.finite = model, [], True

    def forward(self, cache, *arguments, **more):
        logits = self._model.forward(cache, *arguments, **more)
        self.steps.append(dict(zip(NAMES, arguments, strict=True)))
        self.finite &= bool(np.isfinite(logits.numpy()).all())
        return logits

    def __getattr__(self, name):
        return getattr(self._model, name)


def steps_after(way, prompts, numerics="fast"):
    """(steps that the context took, steps of decoding after it, whether all logits were finite)."""
    room = max(map(len, prompts)) + 30
    with LLM(
        "demo", max_model_len=room, max_num_seqs=len(prompts), max_num_batched_tokens=CHUNK, numerics=numerics
    ) as llm:
        spy = llm.engine.model = Spy(llm.engine.model)
        contexts.WAYS[way](llm, prompts)
        before = len(spy.steps)
        decode_steps(llm, prompts, 6)
    return before, spy.steps[before:], spy.finite


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("length", [20, 33, 128, 1000, 2049])
def test_decoding_after_a_filled_context_runs_the_steps_of_a_computed_one(rng, length, numerics):
    """The same lengths, the very same pages, and the same ones given back."""
    prompts = rng.integers(0, 250, (1, length)).tolist()
    computed_in, computed, _ = steps_after(contexts.COMPUTED, prompts, numerics)
    filled_in, filled, finite = steps_after(contexts.FILLED, prompts, numerics)
    assert (computed_in, filled_in) == (-(-length // CHUNK), 0)
    assert finite
    assert len(filled) == len(computed)
    for one, other in zip(filled, computed, strict=True):
        for name in NAMES[1:]:
            np.testing.assert_array_equal(one[name], other[name], name)
    assert filled[-1]["context"].tolist() == [length + len(filled) - 2]


def test_several_contexts_are_all_there(rng):
    """Which pages is chance, but not how many, where they are missing, nor that each is one sequence's."""
    prompts = rng.integers(0, 250, (3, 1500)).tolist()
    _, computed, _ = steps_after(contexts.COMPUTED, prompts)
    _, filled, finite = steps_after(contexts.FILLED, prompts)
    assert finite
    assert [len(step["tokens"]) for step in filled] == [len(step["tokens"]) for step in computed]
    for one, other in zip(filled, computed, strict=True):
        for name in ("row_start", "context", "logit_rows", "decoding"):
            np.testing.assert_array_equal(one[name], other[name], name)
        for name in ("full_pages", "window_pages"):
            np.testing.assert_array_equal(one[name] == NOT_HELD, other[name] == NOT_HELD, name)
            held = one[name][one[name] != NOT_HELD]
            assert len(set(held.tolist())) == len(held)
    assert (filled[-1]["window_pages"] == NOT_HELD).any()


def test_a_context_grows_by_what_it_lacks(rng, monkeypatch):
    prompt = rng.integers(0, 250, 600).tolist()
    with LLM("demo", max_model_len=700, max_num_seqs=1) as llm:
        contexts.fill(llm, [prompt[:320]])
        free, cache = llm.engine.scheduler.pages.full.free, llm.engine.cache
        assert free == llm.engine.scheduler.pages.full.count
        before = cache.read_keys(1, list(range(cache.full_pages)))
        # Not the numbers that another test may have left in the same memory.
        monkeypatch.setattr(contexts, "SEED", int(rng.integers(1, 1 << 62)))
        contexts.fill(llm, [prompt])
        after = cache.read_keys(1, list(range(cache.full_pages)))
    # By their bits: pages that nobody has written may hold NaN.
    changed = (before.view(np.uint32) != after.view(np.uint32)).any(axis=(1, 2, 3))
    assert changed.sum() == -(-600 // 32) - 320 // 32


def test_contexts_that_the_cache_cannot_keep_are_refused(rng):
    prompts = rng.integers(0, 250, (2, 400)).tolist()
    with LLM("demo", max_model_len=480, max_num_seqs=2, kv_cache_tokens=512) as llm:
        with pytest.raises(RequestError, match=r"keeps 0 of 400 tokens of one of 2 contexts; use"):
            contexts.fill(llm, prompts)
        assert len(llm.logits(prompts[0])) == 400  # the engine is well


def test_the_longest_context_leaves_room_for_the_decoded_tokens():
    with LLM("demo", max_model_len=256, max_num_seqs=1) as llm:
        points = list(decode_points(llm, [1], [100, 250, 256], tokens=4))
    assert [point.context for point in points] == [100, 256 - 4 - 8 - 1]
