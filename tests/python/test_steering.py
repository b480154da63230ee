"""Steering vectors and a say in the choice of experts, per request.

Oracle: the float64 reference that does the same; for requests beside them, their answers alone, bit for bit.
"""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native import LLM, Capture, ExpertControl, SamplingParams, SteeringVector
from gptoss_native import _native as native_module
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.errors import CheckpointError, RequestError
from gptoss_native.interventions import Intervention, Slots, intervention_of

from tests.checkpoints import TINY, write_tiny
from tests.compare import assert_close
from tests.model.random_model import native_config, random_arrays, random_config
from tests.reference import model as reference

SETTINGS = {"max_model_len": 96, "page_size": 16, "max_num_batched_tokens": 24, "max_num_seqs": 4}
DEVICES = [device for device in native_module.devices() if device != "cuda"]


def random_intervention(rng, config):
    """Vectors at some layers and controls at some, none that a model could not follow."""
    layers = [layer for layer in range(config.num_hidden_layers) if rng.random() < 0.7] or [0]
    steering = SteeringVector({layer: rng.normal(0, 0.5, config.hidden_size) for layer in layers}, 0.5)
    order = rng.permutation(config.num_local_experts).tolist()
    spare = config.num_local_experts - config.num_experts_per_tok
    masked = int(rng.integers(0, spare + 1))
    forced = int(rng.integers(0, config.num_experts_per_tok + 1))
    control = ExpertControl(
        mask=order[:masked],
        force=order[masked : masked + forced],
        boost={order[-1]: float(rng.normal(0, 2))},
        layers=layers[:1] if rng.random() < 0.3 else None,
    )
    return {"steering": steering, "experts": control}


def test_logits_are_those_of_the_reference_with_the_same_intervention(tmp_path, rng):
    """Exact numerics against float64. A case in which rounding could flip an expert is drawn again."""
    for _ in range(20):
        config = random_config(rng, num_local_experts=8, num_experts_per_tok=3)
        arrays, tokens = random_arrays(rng, config), rng.integers(0, config.vocab_size, 20).tolist()
        changes = random_intervention(rng, config)
        trace = reference.Trace()
        layers = intervention_of(**changes).layers(config)
        expected = reference.forward(native_config(config), arrays, tokens, trace, layers)
        if trace.router_margin > 1e-4:
            break
    write_checkpoint(tmp_path / "model", config, arrays)
    with LLM(tmp_path / "model", device="cpu", numerics="exact", **SETTINGS) as llm:
        assert_close(llm.logits(tokens, **changes), expected, 2e-5, "steered logits")
        plain = reference.forward(native_config(config), arrays, tokens)
        assert_close(llm.logits(tokens), plain, 1e-5, "logits without")
        assert np.abs(expected - plain).max() > 1e-2


@pytest.mark.parametrize("device", DEVICES)
def test_requests_beside_it_keep_every_bit(tmp_path, rng, device):
    """Six requests in a batch for four, three interventions and none; tokens and their log-probabilities."""
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", device=device, **SETTINGS) as llm:
        prompts = [rng.integers(0, 40, int(rng.integers(18, 40))).tolist() for _ in range(3)]
        prompts += [[*prompt[:17], 1] for prompt in prompts]  # beginnings that others could share
        kinds = [{}, *(random_intervention(rng, TINY) for _ in range(3))]
        chosen = [kinds[i] for i in (0, 1, 2, 0, 3, 1)]
        params = [
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=20, **kind)
            for kind in chosen
        ]
        together = llm.generate(prompts, params)
        for prompt, param, output in zip(prompts, params, together, strict=True):
            alone = llm.generate([prompt], param)[0].outputs[0]
            found = output.outputs[0]
            assert found.token_ids == alone.token_ids
            assert found.logprobs == alone.logprobs
        with LLM(tmp_path / "model", device=device, **SETTINGS) as fresh:
            for prompt, param, output in zip(prompts, params, together, strict=True):
                other = fresh.generate([prompt], param)[0].outputs[0]
                assert output.outputs[0].token_ids == other.token_ids
        texts = {tuple(llm.generate([prompts[0]], p)[0].outputs[0].logprobs[0].items()) for p in params[:3]}
        assert len(texts) == 3, "the interventions change nothing"


def test_more_interventions_than_slots_take_turns(tmp_path, rng):
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        prompt = rng.integers(0, 40, 20).tolist()
        params = [
            SamplingParams(
                temperature=0, max_tokens=6, ignore_eos=True, logprobs=3, **random_intervention(rng, TINY)
            )
            for _ in range(20)
        ]
        together = llm.generate([prompt] * 20, params)
        for param, output in zip(params, together, strict=True):
            alone = llm.generate([prompt], param)[0].outputs[0]
            assert (output.outputs[0].token_ids, output.outputs[0].logprobs) == (
                alone.token_ids,
                alone.logprobs,
            )


def test_slots_are_shared_and_never_taken_from_the_same_step(rng):
    class Model:
        def __init__(self):
            self.set, self.held = 0, {}

        def set_intervention(self, slot, layers, adapter):
            assert adapter is None
            self.set += 1
            self.held[slot] = layers

    model = Model()
    slots = Slots(model, TINY, 3)
    some = [Intervention((SteeringVector({0: rng.normal(size=32)}),)) for _ in range(7)]
    assert slots.rows([None, None], [1, 5]) is None
    first = slots.rows([some[0], None, some[1], some[0]], [2, 1, 1, 1])
    assert first.dtype == np.int32
    assert first[0] == first[1] == first[4] != first[3]
    assert first[2] == -1
    assert model.set == 2
    for _ in range(50):
        step = [some[i] for i in rng.integers(0, 7, 3)]
        found = slots.rows(step, [1, 1, 1])
        for intervention, slot in zip(step, found.tolist(), strict=True):
            expected = intervention.layers(TINY)[0].steering
            np.testing.assert_array_equal(model.held[slot][0][1], expected)


def test_vectors_can_be_scaled_saved_and_compared(tmp_path, rng):
    values = {3: rng.normal(size=8), 5: rng.normal(size=8)}
    vector = SteeringVector(values, 2)
    np.testing.assert_array_equal(vector[3], values[3].astype(np.float32) * 2)
    assert sorted(vector) == [3, 5]
    assert vector == SteeringVector({k: 2 * v.astype(np.float32) for k, v in values.items()})
    assert vector * 0.5 == 0.5 * vector == SteeringVector(values)
    assert hash(vector * 0.5) == hash(SteeringVector(values))
    vector.save(tmp_path / "v.safetensors")
    assert SteeringVector.load(tmp_path / "v.safetensors") == vector
    (tmp_path / "bad").write_bytes(b"nothing of the kind")
    for wrong in ("bad", "nowhere"):
        with pytest.raises(CheckpointError, match=wrong):
            SteeringVector.load(tmp_path / wrong)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SteeringVector({}), "maps layers to vectors"),
        (lambda: SteeringVector([1.0]), "maps layers to vectors"),
        (lambda: SteeringVector({"3": [1.0]}), "numbers from 0 on"),
        (lambda: SteeringVector({-1: [1.0]}), "numbers from 0 on"),
        (lambda: SteeringVector({0: [np.nan]}), "finite numbers in one dimension"),
        (lambda: SteeringVector({0: [[1.0]]}), "finite numbers in one dimension"),
        (lambda: SteeringVector({0: "up"}), "finite numbers in one dimension"),
        (lambda: SteeringVector({0: [1.0]}, float("inf")), "strength must be a number"),
        (lambda: ExpertControl(mask=3), "mask must be a list"),
        (lambda: ExpertControl(mask=[True]), "found True in it"),
        (lambda: ExpertControl(force=[-1]), "found -1 in it"),
        (lambda: ExpertControl(boost={1: "much"}), "boost must map experts to numbers, found .1: .much"),
        (lambda: ExpertControl(boost=7), "boost must map experts to numbers"),
        (lambda: ExpertControl(mask=[1], force=[1]), "expert 1 is both masked and forced"),
        (lambda: SamplingParams(steering=3), "steering must be a SteeringVector"),
        (lambda: SamplingParams(experts=[3]), "experts must be a ExpertControl or a list"),
    ],
)
def test_what_is_no_intervention_is_refused(make, words):
    with pytest.raises(RequestError, match=words):
        make()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"steering": SteeringVector({2: [0.0] * 32})},
            "layer 2 is to be changed, the model has layers 0 to 1",
        ),
        ({"steering": SteeringVector({1: [0.0] * 31})}, "has 31 numbers, the model's hidden size is 32"),
        ({"experts": ExpertControl(mask=[3])}, "expert 3 is named, the model has experts 0 to 2"),
        ({"experts": ExpertControl(mask=[0, 1])}, "the masks leave 1 experts of layer 0, a token goes to 2"),
        ({"experts": ExpertControl(force=[0, 1, 2])}, "3 experts of layer 0 are forced"),
        ({"experts": ExpertControl(boost={0: 1.0}, layers=[2])}, "layer 2 is to be changed"),
    ],
)
def test_what_the_model_cannot_follow_is_refused(tmp_path, rng, settings, words):
    write_tiny(tmp_path / "model", rng)
    with LLM(tmp_path / "model", device="cpu", **SETTINGS) as llm:
        with pytest.raises(RequestError, match=words):
            llm.generate([[1, 2]], SamplingParams(**settings))
        with pytest.raises(RequestError, match=words):
            llm.logits([1, 2], **settings)


class Refusing:
    """A native model that has no room for a while."""

    def __init__(self):
        self.refuses, self.filled = True, []

    def set_intervention(self, slot, layers, adapter):
        if self.refuses:
            raise MemoryError
        self.filled.append(slot)


def test_a_slot_that_could_not_be_filled_is_free_again(rng):
    """Also one that somebody else had before."""
    model = Refusing()
    slots = Slots(model, TINY, 2)
    each = [Intervention((SteeringVector({0: rng.normal(size=32)}),)) for _ in range(6)]
    for intervention in each[:3]:
        with pytest.raises(MemoryError):
            slots.rows([intervention], [1])
    model.refuses = False
    assert sorted(slots.rows(each[:2], [1, 1]).tolist()) == [0, 1]
    model.refuses = True
    for intervention in each[2:5]:
        with pytest.raises(MemoryError):
            slots.rows([intervention], [1])
    model.refuses = False
    assert sorted(slots.rows(each[4:], [1, 1]).tolist()) == [0, 1]


def test_numpy_s_whole_numbers_are_numbers(rng):
    layer, expert = np.unravel_index(13, (4, 8))
    assert type(layer) is not int
    control = ExpertControl(mask=np.array([expert, 1]), force=[np.int8(2)], boost={expert: 1}, layers=[layer])
    assert control == ExpertControl(mask=[5, 1], force=[2], boost={5: 1}, layers=[1])
    assert all(type(each) is int for each in (*control.mask, *control.layers, control.boost[0][0]))
    assert list(SteeringVector({layer: [1.0]})) == [1]
    assert Capture(residual=np.arange(2), router=[expert]) == Capture(residual=[0, 1], router=[5])
    for wrong in (np.array([[1]]), np.array([0.5]), [np.bool_(True)], [True], [1.0]):
        with pytest.raises(RequestError, match="mask must be a list of numbers"):
            ExpertControl(mask=wrong)
