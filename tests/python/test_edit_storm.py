"""Edits, undos and requests of all kinds at once. Oracle: fresh models, loaded with the same numbers."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gptoss_native import LLM, Capture, ExpertControl, SamplingParams, SteeringVector
from gptoss_native.errors import RequestError

from tests.checkpoints import TINY, write_tiny
from tests.python.test_adapters import write_adapter
from tests.python.test_edits import GREEDY, SETTINGS, Fresh, numbers, same

WEIGHTS = [0.25, 0.18, 0.1, 0.3, 0.05, 0.1, 0.02]


@pytest.fixture
def llm(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", **SETTINGS) as llm:
        yield llm


def something(rng, llm):
    """What a request may do beside being answered."""
    found = {}
    if rng.random() < 0.5:
        found["steering"] = SteeringVector({int(rng.integers(2)): rng.normal(0, 0.1, 32)})
    if rng.random() < 0.5:
        found["experts"] = ExpertControl(mask=[int(rng.integers(3))])
    if rng.random() < 0.5:
        found["capture"] = Capture(residual=True, router=True, attention=[1])
    if rng.random() < 0.5 and llm.adapters:
        found["adapter"] = "lora"
    return found


def refused(future):
    """Its adapter was dropped before it came to ask for it."""
    return isinstance(future.exception(), RequestError) and "is not loaded" in str(future.exception())


def test_a_thousand_edits_undos_and_requests_in_any_order(llm, tmp_path, rng):
    """Each answer equals that of a fresh model with the same numbers; pages are all free at the end."""
    prompts = [rng.integers(0, 40, 40).tolist() for _ in range(3)]
    for prompt in prompts:
        prompt[:20] = prompts[0][:20]  # texts that begin alike share pages
    applied, undone, fresh, checked = [], [], Fresh(tmp_path), 0
    pool, flying, gone = ThreadPoolExecutor(3), [], []
    write_adapter(tmp_path / "lora", rng, TINY)
    for step in range(1000):
        kind = rng.choice(["edit", "undo", "redo", "ask", "fail", "fly", "adapt"], p=WEIGHTS)
        if kind == "edit":
            applied.append({name: array.copy() for name, array in numbers(llm).items()})
            undone.clear()
            names = rng.choice(sorted(llm.parameters), int(rng.integers(1, 4)), replace=False)
            with llm.edit(f"step {step}", running=str(rng.choice(["finish", "continue"]))) as e:
                for name in names:
                    parameter = e.parameters[name]
                    parameter.update(lambda v: v + rng.normal(0, 0.05, v.shape))
        elif kind == "undo" and applied:
            undone.append(numbers(llm))
            llm.undo()
            same(numbers(llm), applied.pop())
        elif kind == "redo" and undone:
            applied.append(numbers(llm))
            llm.redo()
            same(numbers(llm), undone.pop())
        elif kind == "fail":
            before = numbers(llm)
            with pytest.raises(RequestError), llm.edit() as e:
                e.update("*", lambda v: v + 1 if v.shape[1] == 1 else v * np.inf)
            same(numbers(llm), before)
        elif kind == "ask":
            prompt = prompts[int(rng.integers(len(prompts)))][: int(rng.integers(18, 41))]
            found = llm.generate([prompt], GREEDY)[0].outputs[0].token_ids
            if step % 5 == 0:
                checked += 1
                assert found == fresh.tokens(numbers(llm), [prompt])[0], step
        elif kind == "fly":  # others, with something of their own, go on while edits come and go
            prompt = prompts[int(rng.integers(len(prompts)))][: int(rng.integers(18, 41))]
            params = SamplingParams(max_tokens=25, ignore_eos=True, **something(rng, llm))
            flying.append(pool.submit(lambda prompt=prompt, params=params: llm.generate([prompt], params)))
        elif kind == "adapt" and llm.adapters:
            gone.append(weakref.ref(llm.adapters["lora"].native))
            llm.adapters.drop("lora")
        elif kind == "adapt":
            llm.adapters.load("lora", tmp_path / "lora")
    ended = [each.result()[0].outputs[0] for each in flying if not refused(each)]
    assert {each.finish_reason for each in ended} == {"length"}
    assert len(ended) > len(flying) // 2 > 20
    assert checked > 20
    pages = llm.engine.scheduler.pages
    assert pages.full.free == pages.full.count
    assert pages.window_pool.free == pages.window_pool.count


class Listening:
    """A native model that keeps how its steps were called."""

    def __init__(self, model):
        self._model, self.calls = model, []

    def forward(self, *args, **options):
        self.calls.append((len(args), options))
        return self._model.forward(*args, **options)

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_a_step_without_any_of_it_is_called_as_ever(llm, tmp_path, rng):
    """Whatever others have used, an adapter loaded: no slots and nothing to watch, so the same ops."""
    write_adapter(tmp_path / "lora", rng, TINY)
    llm.engine.model = model = Listening(llm.engine.model)
    llm.generate([[1, 2, 3]], GREEDY)
    plain = model.calls[:]
    assert all(options == {"screen": True} for _, options in plain)
    llm.adapters.load("lora", tmp_path / "lora")
    vector = SteeringVector({0: rng.normal(size=32)})
    with llm.expert_usage():
        other = SamplingParams(max_tokens=2, steering=vector, adapter="lora", capture=Capture(residual=True))
        llm.generate([[1, 2, 3]], other)
    assert {*model.calls[-1][1]} == {"screen", "slots", "watch"}
    model.calls.clear()
    llm.generate([[1, 2, 3]], GREEDY)
    assert model.calls == plain
