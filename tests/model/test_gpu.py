"""The demo model on a GPU of the build, be it a simulated one: the CPU's tokens, steps that are replayed."""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native import LLM, ExpertControl, SamplingParams, SteeringVector, _native
from gptoss_native.errors import RequestError
from gptoss_native.plan import intervention_bytes, plan

from tests.compare import assert_same_bits
from tests.model.random_model import native_config, random_arrays, random_config
from tests.model.stepping import chunked, ragged, run
from tests.python.test_adapters import write_adapter

GREEDY = SamplingParams(temperature=0, max_tokens=12)


class Watched:
    """A model, and for each step whether the host knew all of its tokens."""

    def __init__(self, model):
        self.model, self.known = model, []

    def forward(self, cache, token_ids, *rest, **options):
        self.known.append(bool((token_ids >= 0).all()))
        return self.model.forward(cache, token_ids, *rest, **options)


gpus = [device for device in _native.devices() if device != "cpu"]


@pytest.mark.parametrize("device", gpus)
def test_the_demo_answers_as_on_the_cpu(device, rng):
    """Oracle: the CPU backend, which tests/model/test_golden.py holds to transformers."""
    a, b = rng.integers(100, 10_000, 2)
    question = [{"role": "user", "content": f"What is {a} + {b}?"}]
    expected = LLM("demo", device="cpu", max_model_len=512).chat(question, GREEDY)[0].outputs[0]
    if device == "simt":
        _native.set_schedule(int(rng.integers(2**63)))
    with LLM("demo", device=device, max_model_len=512) as llm:
        model = llm.engine.model = Watched(llm.engine.model)
        found = llm.chat(question, GREEDY)[0].outputs[0]
    assert found.token_ids == expected.token_ids, f"{a} + {b}"
    # Every step after the first took its token from the draw on the device, before the host had read it.
    assert model.known == [True] + [False] * (len(found.token_ids) - 1)


@pytest.mark.parametrize("device", gpus)
def test_a_row_has_the_same_bits_alone_and_in_a_crowd(device, rng):
    """Decoding, which replays a record from the third step of a shape on."""
    config = random_config(rng, num_hidden_layers=2, vocab_size=50)
    native, arrays = native_config(config), random_arrays(rng, config)
    backend = _native.Backend(device=device)
    lengths = [3, 19, *rng.integers(1, 5, int(rng.choice([0, 1, 7, 30, 62]))).tolist()]
    sequences = [rng.integers(0, 50, length).tolist() for length in lengths]
    alone = [
        run(rng, backend, native, arrays, [tokens], chunked(1), numerics="fast")[0] for tokens in sequences
    ]
    crowd = run(rng, backend, native, arrays, sequences, together, numerics="fast")
    for tokens, expected, found in zip(sequences, alone, crowd, strict=True):
        assert_same_bits(found, expected, f"{len(tokens)} tokens, config {config}")
    run(rng, backend, native, arrays, sequences, ragged(rng), numerics="fast")


def together(lengths):
    """One token of every sequence that still has some, step by step."""
    return [[(s, 1) for s, length in enumerate(lengths) if step < length] for step in range(max(lengths))]


@pytest.mark.parametrize("device", gpus)
def test_a_plan_says_what_is_taken_and_no_more_is_taken_later(device, rng):
    """Beside the plan there are only the arguments and results of a step."""
    context, sequences, rows = 512, 3, int(rng.integers(40, 80))
    llm = LLM(
        "demo", device=device, max_model_len=context, max_num_seqs=sequences, max_num_batched_tokens=rows
    )
    wanted = plan(
        llm.config,
        context=context,
        sequences=sequences,
        max_batch_tokens=rows,
        numerics="fast",
        device=device,
    )
    backend = llm.engine.model.backend
    at_once = wanted.total_bytes - wanted.intervention_bytes
    assert abs(backend.allocated - at_once) <= 4096, f"{rows} rows"
    prompts = [rng.integers(0, 256, length).tolist() for length in (3, 40, 90)]
    plain = {"temperature": 0, "max_tokens": 3, "ignore_eos": True, "logprobs": 2}
    llm.generate(prompts, SamplingParams(**plain))
    assert backend.allocated - at_once <= 1 << 18, f"{rows} rows"


@pytest.mark.parametrize("device", gpus)
def test_a_plan_counts_steering_controls_and_adapters_to_the_byte(device, rng, tmp_path):
    sequences, rows, layers = 3, int(rng.integers(40, 80)), 4
    llm = LLM("demo", device=device, max_model_len=64, max_num_seqs=sequences, max_num_batched_tokens=rows)
    config, backend = llm.config, llm.engine.model.backend
    plain = {"temperature": 0, "max_tokens": 1}
    llm.generate([[1, 2, 3]], SamplingParams(**plain))
    before = backend.allocated
    vector = SteeringVector({layer: rng.normal(size=config.hidden_size) for layer in range(layers)})
    everything = {"steering": vector, "experts": ExpertControl(mask=[0])}
    llm.generate([[1, 2, 3]], SamplingParams(**plain, **everything))
    assert backend.allocated - before == intervention_bytes(config, sequences, rows)
    write_adapter(tmp_path / "a", rng, config)
    adapter = llm.adapters.load("a", tmp_path / "a")
    llm.generate([[1, 2, 3]], SamplingParams(**plain, **everything, adapter="a"))
    counted = intervention_bytes(config, sequences, rows, adapter.rank) + adapter.nbytes
    assert backend.allocated - before == counted


@pytest.mark.parametrize("device", gpus)
def test_exact_numerics_are_the_cpu_s(device):
    with pytest.raises(RequestError, match=f"numerics is 'exact', which {device} does not offer"):
        LLM("demo", device=device, numerics="exact")


def test_a_gpu_that_is_not_there_is_refused_with_the_reason():
    problem = _native.device_problem("cuda")
    if not problem:
        assert LLM("demo", device="cuda", max_model_len=64).device == "cuda"
        return
    with pytest.raises(RequestError, match=r"device is 'cuda', but .*device='cpu'"):
        LLM("demo", device="cuda")
    assert LLM("demo", device="auto", max_model_len=64).device == "cpu"
    assert np.isfinite(LLM("demo", max_model_len=64).logits([1, 2])).all()
