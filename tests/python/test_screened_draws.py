"""When the engine asks for draws without all logits, and that answers do not depend on it.

Oracle: the same model with every logit computed.
"""

from __future__ import annotations

import pytest
from gptoss_native import LLM, SamplingParams
from gptoss_native import engine as engine_module
from gptoss_native.constraints.params import StructuredOutputsParams

FEW = [
    {"temperature": 0},
    {},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 0, "top_p": 0.5},  # greedy: nothing is cut
    {"min_p": 0.1},
    {"stop": "x", "n": 3},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"repetition_penalty": 1.3, "temperature": 0},
    {"logit_bias": {3: 20.0, 40: -100.0}},
    {"min_tokens": 8, "temperature": 0},
    {"structured_outputs": StructuredOutputsParams(choice=["yes", "no"])},
    {"structured_outputs": StructuredOutputsParams(regex="[a-z ]+[0-9]{3}"), "repetition_penalty": 1.1},
]
ALL = [
    {"top_p": 0.9},
    {"logprobs": 0},
    {"repetition_penalty": 1.1, "logprobs": 1},
    {"top_k": 100_000},
]


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", device="cpu", max_model_len=256, max_num_seqs=4) as llm:
        yield llm


def steps_of(llm, monkeypatch, settings, prompts=("What is 17 + 4?",)):
    """Token ids of the answers, and whether each step was asked for few logits."""
    asked = []
    native = llm.engine.model

    class Listening:
        def forward(self, *args, screen, **options):
            asked.append(screen)
            return native.forward(*args, screen=screen, **options)

    monkeypatch.setattr(llm.engine, "model", Listening())
    params = [SamplingParams(**{"max_tokens": 12, "seed": 7, **each}) for each in settings]
    found = llm.generate(list(prompts), params if len(params) > 1 else params[0])
    monkeypatch.undo()
    return [answer.token_ids for request in found for answer in request.outputs], asked


@pytest.mark.parametrize("settings", FEW, ids=str)
def test_few_logits_are_enough(llm, monkeypatch, settings):
    found, asked = steps_of(llm, monkeypatch, [settings])
    assert asked
    assert all(asked)
    monkeypatch.setattr(engine_module, "draws_by_screen", lambda *_: False)
    native = llm.engine.model
    again = llm.generate(["What is 17 + 4?"], SamplingParams(**{"max_tokens": 12, "seed": 7, **settings}))
    assert llm.engine.model is native
    assert [answer.token_ids for answer in again[0].outputs] == found


def test_a_penalty_on_many_tokens_wants_every_logit(llm, monkeypatch):
    """More different ones than pay one by one; the demo has some hundreds."""
    many = list(range(10, 150))
    settings = [{"repetition_penalty": 1.1}]
    _, asked = steps_of(llm, monkeypatch, settings, [many])
    assert asked
    assert not any(asked)
    _, asked = steps_of(llm, monkeypatch, settings, [[11] * 140])
    assert all(asked)


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_some_requests_want_every_logit(llm, monkeypatch, settings):
    _, asked = steps_of(llm, monkeypatch, [settings])
    assert asked
    assert not any(asked)


def test_one_such_request_of_a_step_is_enough(llm, monkeypatch):
    alone, _ = steps_of(llm, monkeypatch, [{}])
    found, asked = steps_of(llm, monkeypatch, [{}, {"logprobs": 2}], ["What is 17 + 4?", "What is 1 + 1?"])
    assert not all(asked)
    assert found[0] == alone[0]
