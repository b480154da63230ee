"""Where an edit begins and ends, in time and between threads. Oracle: the numbers as they were before."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from gptoss_native import LLM
from gptoss_native.errors import RequestError

from tests.checkpoints import write_tiny
from tests.python.test_edits import SETTINGS, numbers, same
from tests.python.test_lora import adapter_tensors, write_adapter


@pytest.fixture
def llm(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", **SETTINGS) as llm:
        yield llm


def test_handles_of_an_edit_end_with_it(llm):
    with llm.edit() as e:
        bias, parameters = e.layers[1].router.bias, e.parameters
        bias.write(np.ones(3))
    before = numbers(llm)
    for write in (
        lambda: bias.write(np.zeros(3)),
        lambda: bias.write_packed(np.zeros(3, np.uint16)),
        lambda: parameters["lm_head.weight"].update(lambda values: -values),
    ):
        with pytest.raises(RequestError, match="is of an edit that has ended"):
            write()
    for edit in (e, llm.edit("to come")):
        for look in (
            lambda edit=edit: edit.parameters,
            lambda edit=edit: edit.layers,
            lambda edit=edit: edit.store,
        ):
            with pytest.raises(RequestError, match="is not open; write inside its with block"):
                look()
    same(numbers(llm), before)
    assert len(llm.edits) == 1
    np.testing.assert_array_equal(bias.decode(), np.ones(3))  # reading does no harm


def test_an_edit_is_not_begun_twice_at_once(llm):
    with llm.edit() as e:
        e.set("layers.0.sinks", 3)
        with pytest.raises(RequestError, match="is open already"), e:
            pass
    assert (llm.layers[0].sinks.decode() == 3).all()
    with e:  # and after another as often as one likes
        e.scale("layers.0.sinks", 2)
    assert (llm.layers[0].sinks.decode() == 6).all()
    assert len(llm.edits) == 2


def test_a_call_that_fails_leaves_nothing_of_itself(llm, tmp_path, rng):
    """Its caller may catch the error and go on; what other calls have written stays."""
    kept = rng.standard_normal(3)
    huge = {
        name: a * np.float32(1e30 if "mlp.experts.lora" in name else 1)
        for name, a in adapter_tensors(rng).items()
    }
    adapter, calls = write_adapter(tmp_path / "lora", huge), 0

    def fails_in_the_second(values):
        nonlocal calls
        calls += 1
        return values + 1 if calls % 2 else values * np.nan

    with llm.edit() as e:
        e.layers[0].router.bias.write(kept)
        expected = {name: parameter.decode() for name, parameter in e.parameters.items()}
        for call in (
            lambda: e.update("layers.*.router.weight", fails_in_the_second),
            lambda: e.update("*", lambda v: v + 1 if v.shape[1] == 1 else v * np.inf),
            lambda: e.merge_lora(adapter),
        ):
            with pytest.raises(RequestError):
                call()
            for name, values in expected.items():
                np.testing.assert_array_equal(e.parameters[name].decode(), values, err_msg=name)
        assert e.report.values == 0
    assert [diff.name for diff in llm.diff()] == ["model.layers.0.mlp.router.bias"]


class Telling:
    """A native model that says which of its steps is under way."""

    def __init__(self, model):
        self._model, self.steps, self.runs = model, 0, False

    def forward(self, *args, **options):
        self.steps, self.runs = self.steps + 1, True
        try:
            return self._model.forward(*args, **options)
        finally:
            self.runs = False

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_numbers_are_read_while_a_step_runs(rng):
    """Several times within one step: a reader who waited for each step would be let in once between two."""
    with LLM("demo", device="cpu", max_model_len=1024, max_num_batched_tokens=1024) as llm:
        llm.engine.model = model = Telling(llm.engine.model)
        prompt, most, enough = rng.integers(0, 250, 1000).tolist(), 0, threading.Event()

        def work():
            for _ in range(100):
                if not enough.is_set():
                    llm.score([[*rng.integers(0, 250, 3).tolist(), *prompt]])

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive() and most < 5:
            step, count = model.steps, 0
            while model.runs and model.steps == step and count < 5:
                llm.layers[0].experts[0].down_proj.decode(0)
                time.sleep(0.002)  # lets the engine say that the step has ended
                count += 1
            most = max(most, count)
        enough.set()
        thread.join()
    assert most == 5
