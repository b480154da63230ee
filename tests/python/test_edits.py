"""Edits as transactions. Oracle: a fresh model, loaded from a checkpoint that holds the same numbers."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from gptoss_native import LLM, SamplingParams
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.errors import CheckpointError, GptossError, RequestError

from tests.checkpoints import TINY, tiny_config, write_tiny

SETTINGS = {"device": "cpu", "max_model_len": 96, "page_size": 16, "max_num_batched_tokens": 24}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def llm(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", **SETTINGS) as llm:
        yield llm


def numbers(llm):
    """All as stored, by name."""
    found = {}
    for name, parameter in llm.parameters.items():
        packed = parameter.packed()
        if parameter.dtype == "BF16":
            found[name] = packed
        else:
            found[name + "_blocks"], found[name + "_scales"] = packed
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


class Fresh:
    """Answers of models newly loaded from the same numbers."""

    def __init__(self, folder):
        self._folder, self._count = folder, 0

    def tokens(self, arrays, prompts, params=GREEDY):
        self._count += 1
        folder = self._folder / f"fresh{self._count}"
        write_checkpoint(folder, TINY, arrays)
        with LLM(folder, **SETTINGS) as llm:
            return [out.outputs[0].token_ids for out in llm.generate(prompts, params)]


def test_an_edit_is_seen_at_its_end_and_all_at_once(llm, tmp_path, rng):
    before, prompt = numbers(llm), rng.integers(0, 40, 20).tolist()
    old = llm.generate([prompt], GREEDY)[0].outputs[0].token_ids
    with llm.edit("louder") as e:
        e.scale("layers.*.experts.1.down_proj", -3)
        e.layers[0].router.bias.write([1.0, 2.0, 3.0])
        np.testing.assert_array_equal(e.parameters["layers.0.router.bias"].decode(), [1, 2, 3])
        same(numbers(llm), before)
        assert llm.generate([prompt], GREEDY)[0].outputs[0].token_ids == old
    after = numbers(llm)
    assert [(c.name, c.applied) for c in llm.edits] == [("louder", True)]
    assert set(llm.edits[0].tensors) == {name for name in before if (before[name] != after[name]).any()}
    new = llm.generate([prompt], GREEDY)[0].outputs[0].token_ids
    assert new == Fresh(tmp_path).tokens(after, [prompt])[0]
    assert new != old
    assert llm.undo().name == "louder"
    same(numbers(llm), before)
    assert llm.generate([prompt], GREEDY)[0].outputs[0].token_ids == old
    llm.redo()
    same(numbers(llm), after)


def test_an_error_in_the_block_leaves_everything_as_it_was(llm):
    before = numbers(llm)

    def edit(*patterns):
        with llm.edit() as e:
            for pattern in patterns:
                e.set(pattern, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        edit("lm_head.weight")
    with pytest.raises(RequestError, match="no parameter fits"):
        edit("lm_head.weight", "nothing.*")
    same(numbers(llm), before)
    assert llm.edits == []
    closed = llm.edit()
    with pytest.raises(RequestError, match="is not open"):
        closed.set("lm_head.weight", 0)


def test_a_write_that_fails_on_the_way_is_taken_back(llm, monkeypatch):
    """As a full memory or a lost device would: the third row range cannot be written."""
    from gptoss_native.parameters.store import ModelStore

    before, real, calls = numbers(llm), ModelStore.write, []

    def failing(self, name, first, rows):
        calls.append(name)
        if len(calls) == 3:
            real(self, name, first, rows[: len(rows) // 2])
            raise GptossError("no more memory")
        real(self, name, first, rows)

    monkeypatch.setattr(ModelStore, "write", failing)
    with pytest.raises(GptossError, match="no more memory"), llm.edit() as e:
        e.set("layers.*.[qk]_proj.weight", 1)
    assert len(calls) > 3
    same(numbers(llm), before)
    assert llm.edits == []


def test_history_goes_back_and_forth(llm, rng):
    states = [numbers(llm)]
    for _ in range(4):
        with llm.edit() as e:
            e.scale("*", float(rng.uniform(0.5, 2)))
        states.append(numbers(llm))
    for state in reversed(states[:-1]):
        llm.undo()
        same(numbers(llm), state)
    with pytest.raises(RequestError, match="no edit to undo"):
        llm.undo()
    for state in states[1:3]:
        llm.redo()
        same(numbers(llm), state)
    assert [c.applied for c in llm.edits] == [True, True, False, False]
    llm.layers[0].sinks.write(np.zeros(4))
    assert [c.applied for c in llm.edits] == [True, True, True]
    with pytest.raises(RequestError, match="no edit to redo"):
        llm.redo()
    llm.undo()
    same(numbers(llm), states[2])
    llm.forget_edits()
    assert llm.edits == llm.diff() == []
    same(numbers(llm), states[2])


def test_overlapping_writes_of_one_edit_are_undone_in_order(llm, rng):
    before = numbers(llm)
    weight = "layers.0.router.weight"
    with llm.edit() as e:
        for _ in range(6):
            first, end = sorted(rng.integers(0, 4, 2).tolist())
            e.write(weight, rng.standard_normal((end - first, 32)), rows=slice(first, end))
        expected = e.parameters[weight].decode()
    np.testing.assert_array_equal(llm.parameters[weight].decode(), expected)
    llm.undo()
    same(numbers(llm), before)
    llm.redo()
    np.testing.assert_array_equal(llm.parameters[weight].decode(), expected)


def test_the_difference_is_measured(llm):
    old = llm.layers[1].experts[2].down_proj.decode().astype(np.float64)
    llm.layers[1].experts[2].down_proj.update(lambda values: -values)
    llm.layers[0].sinks.write(llm.layers[0].sinks.decode(1) + 1, rows=1)
    found = {diff.name: diff for diff in llm.diff()}
    assert set(found) == {"model.layers.1.mlp.experts.2.down_proj", "model.layers.0.self_attn.sinks"}
    expert = found["model.layers.1.mlp.experts.2.down_proj"]
    assert (expert.changed, expert.values) == (np.count_nonzero(old), old.size)
    assert expert.norm == pytest.approx(2 * np.linalg.norm(old))
    assert expert.before == expert.after == pytest.approx(np.linalg.norm(old))
    assert expert.relative == pytest.approx(2)
    assert expert.largest == pytest.approx(2 * np.abs(old).max())
    assert (
        found["model.layers.0.self_attn.sinks"].changed,
        found["model.layers.0.self_attn.sinks"].values,
    ) == (1, 4)


def test_patches_carry_an_edit_to_another_copy(llm, tmp_path, rng):
    before, path = numbers(llm), tmp_path / "calmer.safetensors"
    with pytest.raises(RequestError, match="nothing differs"):
        llm.save_patch(path)
    llm.layers[0].experts[1].down_proj.update(lambda values: values * 0.5)
    llm.layers[1].q_proj.weight.write(rng.standard_normal(32), rows=7)
    edited = numbers(llm)
    size = llm.save_patch(path, "calmer")
    assert size == path.stat().st_size < 20_000
    with LLM(tmp_path / "model", **SETTINGS) as other:
        assert other.apply_patch(path).name == "calmer"
        same(numbers(other), edited)
        with pytest.raises(CheckpointError, match="replaces other numbers"):
            other.apply_patch(path)
        other.undo()
        same(numbers(other), before)
        other.layers[1].q_proj.weight.write(rng.standard_normal(32), rows=7)
        with pytest.raises(CheckpointError, match="q_proj"):
            other.apply_patch(path)
        other.apply_patch(path, force=True)
        same(numbers(other), edited)
    write_tiny(tmp_path / "wide", rng, config=tiny_config(hidden_size=64))
    with (
        LLM(tmp_path / "wide", **SETTINGS) as other,
        pytest.raises(CheckpointError, match="use a patch of its kind"),
    ):
        other.apply_patch(path)
    with pytest.raises(CheckpointError, match="expected gptoss-native-patch 1"):
        llm.apply_patch(next((tmp_path / "model").glob("*.safetensors")))


def slow_request(llm, tokens=60):
    """A long answer, on a thread; returns (thread, its tokens)."""
    found, begun = [], threading.Event()

    def work():
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        for delta in llm.stream([1, 2, 3], params):
            begun.set()
            time.sleep(0.001)
            if delta.output is not None:
                found.extend(delta.output.token_ids)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    return thread, found


def test_requests_under_way_end_with_the_numbers_they_began_with(llm, tmp_path):
    before = numbers(llm)
    thread, found = slow_request(llm)
    with llm.edit("negated") as e:
        e.scale("lm_head.weight", -1)
    late = llm.generate([[1, 2, 3]], GREEDY)[0].outputs[0].token_ids
    thread.join()
    fresh = Fresh(tmp_path)
    assert (
        found
        == fresh.tokens(before, [[1, 2, 3]], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))[0]
    )
    assert late == fresh.tokens(numbers(llm), [[1, 2, 3]])[0]


def test_an_edit_that_waits_in_vain_changes_nothing(llm):
    before = numbers(llm)
    stream = llm.stream([1, 2, 3], SamplingParams(temperature=0, max_tokens=90, ignore_eos=True))
    next(stream)
    request = next(iter(llm.engine._tasks.values()))
    llm.engine.pause(request, True)
    with pytest.raises(GptossError, match="1 requests were still running"), llm.edit(timeout=0.05) as e:
        e.set("lm_head.weight", 0)
    same(numbers(llm), before)
    assert llm.edits == []
    llm.engine.pause(request, False)
    assert len([*stream][-1].output.token_ids) == 90


def test_an_edit_between_two_steps_goes_on_with_what_was_computed(llm, tmp_path, rng):
    """lm_head is read by no later key or value: up to the edit the old answer, from there the new logits."""
    before, prompt = numbers(llm), rng.integers(0, 40, 20).tolist()
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    stream = llm.stream(prompt, params)
    for _ in range(5):
        next(stream)
    request = next(iter(llm.engine._tasks.values()))
    llm.engine.pause(request, True)  # or it may have ended before the edit is made
    with llm.edit("negated", running="continue") as e:
        e.scale("lm_head.weight", -1)
    llm.engine.pause(request, False)
    found = [*stream][-1].output.token_ids
    old = Fresh(tmp_path).tokens(before, [prompt], params)[0]
    agree = next((i for i, (a, b) in enumerate(zip(found, old, strict=True)) if a != b), len(found))
    assert 0 < agree < 40
    # From there on: the likeliest under the new lm_head after what was written so far.
    logits = llm.logits([*prompt, *found])
    assert found[agree:] == logits[len(prompt) + agree - 1 : -1].argmax(axis=1).tolist()


def test_wrong_calls_are_refused(llm):
    for call, words in [
        (lambda: llm.edit(7), "an edit's name must be a text"),
        (lambda: llm.save_patch("p", name=7), "a patch's name must be a text"),
        (lambda: llm.edit(running="now"), "'finish' or 'continue', found 'now'"),
        (lambda: llm.edit(timeout=-1), "a number of seconds"),
        (lambda: llm.undo(timeout="long"), "a number of seconds"),
    ]:
        with pytest.raises(RequestError, match=words):
            call()
    with pytest.raises(RequestError, match="an edit is open on this thread"), llm.edit():
        llm.undo()
    with pytest.raises(RequestError, match="expected a finite number"), llm.edit() as e:
        e.scale("lm_head.weight", "twice")
    assert llm.edits == []


def test_nobody_reads_half_of_an_edit(llm):
    """Codes and scales change together: an expert negated and doubled is the old one or the new one."""
    part = llm.layers[0].experts[0].down_proj
    old, wrong, done = part.decode(), [], threading.Event()

    def read():
        while not done.is_set():
            ratio = np.unique(part.decode()[old != 0] / old[old != 0])
            if ratio.tolist() not in ([1.0], [-2.0]):
                wrong.append(ratio)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(150):
            with llm.edit() as e:
                e.scale("layers.0.experts.0.down_proj", -2)
            llm.undo()
    finally:
        done.set()
        reader.join()
    assert wrong == []


def test_an_interrupt_after_the_fact_leaves_the_history_true(llm, monkeypatch):
    """Ctrl+C while waiting: what has happened is in the history, and can be undone."""
    before, real = numbers(llm), type(llm.engine).change

    def interrupted(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(llm.engine), "change", interrupted)
    with pytest.raises(KeyboardInterrupt), llm.edit("late") as e:
        e.set("layers.0.sinks", 3)
    assert [(change.name, change.applied) for change in llm.edits] == [("late", True)]
    with pytest.raises(KeyboardInterrupt):
        llm.undo()
    assert [(change.name, change.applied) for change in llm.edits] == [("late", False)]
    same(numbers(llm), before)
    monkeypatch.undo()
    llm.redo()
    llm.undo()
    same(numbers(llm), before)
