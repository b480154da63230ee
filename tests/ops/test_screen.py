"""Draws without all logits (csrc/cpu/screen.h).

Oracle: the sampler over all logits, whose tokens may not change.
"""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.config import FULL
from gptoss_native.errors import GptossError

from tests.compare import assert_same_bits
from tests.model.random_model import native_config, random_arrays, random_config
from tests.ops.inputs import bf16, multiple, normal
from tests.ops.sampling_rows import native, random_setting
from tests.ops.test_bounds import backend_of, matrices
from tests.reference.formats import bf16_to_float, float_to_bf16
from tests.reference.sample import SamplingRow


class Screened:
    """A model whose lm_head is given, after one step of `rows` prompts."""

    def __init__(self, rng, isa, lm_head, rows, dtype="packed", slot=None, **weights):
        vocab, hidden = lm_head.shape
        config = random_config(
            rng, num_hidden_layers=1, vocab_size=vocab, hidden_size=hidden, layer_types=(FULL,)
        )
        arrays = {**random_arrays(rng, config), "lm_head.weight": lm_head, **weights}
        self.lm_head, self.backend = lm_head, backend_of(isa, dtype)
        self.model = _native.Model(self.backend, native_config(config), arrays, "exact", max_rows=rows)
        self.cache = _native.KvCache(self.model, 16, rows, rows)
        self.tokens, self.slot = rng.integers(0, vocab, rows).astype(np.int32), slot

    def step(self, screen, wanted=None):
        rows = len(self.tokens)
        slots = None if self.slot is None else np.full(rows, self.slot, np.int32)
        each = np.arange(rows, dtype=np.int32)
        return self.model.forward(
            self.cache, self.tokens, np.arange(rows + 1, dtype=np.int32), np.zeros(rows, np.int32),
            each[:, None], each[:, None], each[:wanted], screen=screen, slots=slots,
        )  # fmt: skip

    def draw(self, logits, rows, logprobs=0):
        none = np.empty(0, np.int32)
        return self.backend.sample(logits, rows, none, none.astype(np.float32), none, None, logprobs)


def settings(rng, count, **fixed):
    rows = np.zeros(count, _native.sample_row_dtype)
    rows["repetition_penalty"] = rows["top_p"] = 1
    rows["mask_row"], rows["skip_report"] = -1, 1
    rows["temperature"] = rng.choice([0, 0.05, 1, 1, 3], count)
    rows["seed"], rows["position"] = rng.integers(0, 1 << 62, count), rng.integers(0, 1000, count)
    rows["min_p"] = rng.choice([0, 0, 0.01, 0.5, 1], count)
    rows["top_k"] = rng.choice([0, 0, 1, 5, 40, 5000], count)
    rows["top_p"] = rng.choice([1, 1, 0.9, 1e-3], count)
    for name, value in fixed.items():
        rows[name] = value
    return rows


def heads(rng):
    """lm_heads of which many rows are nearly or exactly the same, so that draws are close, and others."""
    vocab, hidden = int(rng.integers(900, 3000)), multiple(rng, 64, 6)
    for kind, lm_head in matrices(rng, vocab, hidden):
        if kind not in ("of any size", "of any exponent", "whose squares overflow"):
            yield kind, lm_head
    same = np.repeat(bf16(rng, vocab // 30 + 1, hidden), 30, axis=0)[:vocab]
    yield "thirty times the same", same
    near = same.copy()
    near[np.arange(vocab), rng.integers(0, hidden, vocab)] ^= 1  # a last bit
    yield "thirty times nearly the same", near


@pytest.mark.parametrize("dtype", ["packed", "q8"])
def test_the_same_tokens_are_drawn(isa, rng, dtype):
    compared = 0
    for kind, lm_head in heads(rng):
        screened = Screened(rng, isa, lm_head, rows=int(rng.integers(1, 24)), dtype=dtype)
        count = len(screened.tokens)
        for _ in range(6):
            rows = settings(rng, count)
            expected = screened.draw(screened.step(screen=False), rows)
            found = screened.draw(screened.step(screen=True), rows)
            for name, here, there in zip(("token", "status"), found[::5], expected[::5], strict=True):
                assert (here == there).all(), f"{name} of {kind}, settings {rows[here != there]}"
            compared += count
    assert compared > 30


def changing_setting(rng, logits):
    """Any mixture of effects, often on the tokens that would win without them."""
    vocab = len(logits)
    setting = vars(random_setting(rng, vocab))
    best = np.argsort(-logits)[: int(rng.integers(1, 30))].tolist()
    if rng.random() < 0.5:
        few = rng.choice(vocab, int(rng.integers(1, 40)), replace=False).tolist()
        kinds = [None, few, np.setdiff1d(np.arange(vocab), best).tolist(), [best[-1], *few], [best[0]]]
        setting["allowed"] = kinds[rng.integers(len(kinds))]
    if rng.random() < 0.5:
        setting["output"] = [*best, *setting["output"]]
    if rng.random() < 0.3:
        setting["bias"] = {token: float(np.float32(rng.normal() * 5)) for token in best}
    if rng.random() < 0.3:
        setting["temperature"] = 0.0
    if rng.random() < 0.7:
        setting["top_p"] = 1.0
    if rng.random() < 0.7:
        setting["top_k"] = 0
    return SamplingRow(**{**setting, "skip_report": 1})


@pytest.mark.parametrize("dtype", ["packed", "q8"])
def test_masks_biases_and_penalties_change_the_same_logits(isa, rng, dtype):
    compared = settled = 0
    for kind, lm_head in heads(rng):
        screened = Screened(rng, isa, lm_head, rows=12, dtype=dtype)
        logits = screened.step(screen=False).numpy()
        for _ in range(4):
            settings = [changing_setting(rng, row) for row in logits]
            expected = native(screened.backend, logits, settings)
            found = native(screened.backend, screened.step(screen=True), settings, vocab=logits.shape[1])
            for name, here, there in zip(("token", "status"), found[::5], expected[::5], strict=True):
                wrong = [setting for setting, same in zip(settings, here == there, strict=True) if not same]
                assert not wrong, f"{name} of {kind}: {wrong[0]}"
            compared += len(settings)
        settled += screened.backend.rows_settled
    assert compared > 100
    assert settled > compared / 10, "hardly a row was drawn by its bounds"


FEW = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_k and top_p": {"top_k": 5, "top_p": 0.9},
    "min_p": {"min_p": 0.2},
    "mask": {"allowed": list(range(100, 1900))},
    "one allowed": {"allowed": [77]},
    "bias": {"bias": {3: 1.0, 4: -1.0}},
    "penalties": {"prompt": [3, 5, 3], "output": [9, 9], "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    "a forbidden token has a bias": {"allowed": [5, 9, 11], "bias": {3: 100.0, 9: 1.0}},
}


@pytest.mark.parametrize("settings", FEW.values(), ids=FEW)
@pytest.mark.parametrize("dtype", ["bf16", "packed", "q8"])
def test_what_is_drawn_by_bounds(isa, rng, dtype, settings):
    """That it is: the tokens would be the same otherwise."""
    screened = Screened(rng, isa, bf16(rng, 2000, 128, scale=0.3), rows=1, dtype=dtype)
    given = [SamplingRow(**settings, seed=int(rng.integers(1000)), skip_report=1)]
    found = native(screened.backend, screened.step(screen=True), given, vocab=2000)[0]
    assert screened.backend.rows_settled == 1
    assert found == native(screened.backend, screened.step(screen=False), given, vocab=2000)[0]
    assert screened.backend.rows_settled == 1
    # Sums over all logits, and reports of them, are not.
    for other in (SamplingRow(top_p=0.9, skip_report=1), SamplingRow(skip_report=0)):
        native(screened.backend, screened.step(screen=True), [other], vocab=2000)
    assert screened.backend.rows_settled == 1


def test_more_changed_tokens_than_pay_one_by_one(isa, rng):
    screened = Screened(rng, isa, bf16(rng, 800, 64), rows=3)
    logits = screened.step(screen=False).numpy()
    history = rng.integers(0, 800, 2000).tolist()
    settings = [
        SamplingRow(temperature=1.0, repetition_penalty=1.5, seed=seed, prompt=history, skip_report=1)
        for seed in range(3)
    ]
    expected = native(screened.backend, logits, settings)[0]
    assert (native(screened.backend, screened.step(screen=True), settings, vocab=800)[0] == expected).all()


def test_a_forbidden_logit_that_is_not_finite_fails_the_row(isa, rng):
    lm_head = bf16(rng, 1000, 128)
    lm_head[3, 3] = 0x7F80
    screened = Screened(rng, isa, lm_head, rows=2)
    settings = [SamplingRow(allowed=[5, 9], skip_report=1)] * 2
    assert (native(screened.backend, screened.step(screen=True), settings, vocab=1000)[5] == 1).all()


@pytest.mark.parametrize("dtype", ["bf16", "q8"])
def test_a_forbidden_bound_that_is_not_finite_fails_nothing(isa, rng, dtype):
    """A row of lm_head whose squares overflow, and whose logit does not."""
    lm_head = bf16_to_float(bf16(rng, 1000, 64))
    lm_head[3] *= 1e21
    screened = Screened(rng, isa, float_to_bf16(lm_head), rows=1, dtype=dtype)
    setting = [SamplingRow(temperature=0.0, allowed=[5, 9], skip_report=1)]
    expected = native(screened.backend, screened.step(screen=False), setting, vocab=1000)
    found = native(screened.backend, screened.step(screen=True), setting, vocab=1000)
    assert (found[0], found[5]) == (expected[0], expected[5])
    assert found[5] == 0


@pytest.mark.parametrize("dtype", ["bf16", "packed"])
def test_sums_that_overflow_on_the_way_fail_the_row(isa, rng, dtype):
    """Infinity less infinity in a float kernel's lane, where whole numbers of a block add up to 0."""
    vocab, hidden = 1000, 64
    embedding, lm_head = np.zeros((2, vocab, hidden), np.float32)
    embedding[:, [0, 1, 16, 17]] = 1e8
    lm_head[:, 0] = 1e10 * rng.random(vocab)
    lm_head[7, [0, 16]], lm_head[7, [1, 17]] = 31 * 2.0**57, -31 * 2.0**57
    weights = {
        "model.embed_tokens.weight": float_to_bf16(embedding),
        "model.norm.weight": float_to_bf16(np.full(hidden, 1e19, np.float32)),
    }
    screened = Screened(rng, isa, float_to_bf16(lm_head), rows=1, dtype=dtype, **weights)
    setting = [SamplingRow(temperature=0.0, skip_report=1)]
    for screen in (False, True):
        token, *_, status = native(screened.backend, screened.step(screen), setting, vocab=vocab)
        assert (token, status) == (0, 1), f"screen={screen}"


def test_sums_over_all_tokens_are_over_logits(isa, rng):
    """top_p alone: where it cuts depends on every logit, most of all when they are nearly equal."""
    screened = Screened(rng, isa, bf16(rng, 2000, 64, scale=0.01), rows=24)
    for _ in range(20):
        rows = settings(rng, 24, temperature=1, min_p=0, top_k=0, top_p=0.3)
        expected = screened.draw(screened.step(screen=False), rows)[0]
        assert (screened.draw(screened.step(screen=True), rows)[0] == expected).all()


def test_where_top_p_cuts_the_last_bit_decides(isa, rng):
    """Settings at the very sums at which top-k's tokens are cut: these must be added in one order."""
    screened = Screened(rng, isa, bf16(rng, 2000, 128, scale=0.3), rows=16)
    logits = screened.step(screen=False).numpy()
    for top_k in (3, 20, 120):
        largest = np.sort(logits, axis=1)[:, ::-1][:, :top_k].astype(np.float64)
        weights = np.exp(largest - largest[:, :1])
        sums = weights.cumsum(axis=1) / weights.sum(axis=1, keepdims=True)
        for _ in range(12):
            rows = settings(rng, 16, temperature=1, min_p=0, top_k=top_k)
            at = rng.integers(0, top_k, 16)
            near = sums[np.arange(16), at].astype(np.float32)
            rows["top_p"] = np.minimum(near * (1 + rng.integers(-2, 3, 16) * np.float32(2**-24)), 1)
            expected = screened.draw(screened.step(screen=False), rows)[0]
            assert (screened.draw(screened.step(screen=True), rows)[0] == expected).all(), f"top_k {top_k}"


@pytest.mark.parametrize("dtype", ["packed", "q8"])
def test_whoever_reads_logits_reads_all_of_them(isa, rng, dtype):
    screened = Screened(rng, isa, bf16(rng, 1000, 192), rows=5, dtype=dtype)
    expected = screened.step(screen=False).numpy()
    logits = screened.step(screen=True)
    rows = settings(rng, 5)
    first = screened.draw(logits, rows)[0]
    assert (screened.draw(logits, rows)[0] == first).all(), "a second draw"
    assert_same_bits(logits.rows(1, 2), expected[1:3], "logits after a draw by bounds")
    assert (screened.draw(logits, rows)[0] == first).all(), "a draw from all logits"
    # Log-probabilities sum over all logits.
    rows = settings(rng, 5, skip_report=0)
    reports = [screened.draw(screened.step(screen), rows, 3) for screen in (True, False)]
    names = ("token", "logprob", "rank", "top token", "top logprob", "status")
    for name, here, there in zip(names, *reports, strict=True):
        assert_same_bits(here, there, name)


@pytest.mark.parametrize("dtype", ["bf16", "packed", "q8"])
def test_bounds_follow_an_edit(isa, rng, dtype):
    screened = Screened(rng, isa, bf16(rng, 1000, 192), rows=2, dtype=dtype)
    before = screened.step(screen=False).numpy()
    grown = bf16_to_float(screened.lm_head[int(before[0].argmax())]) * 64
    logits = screened.step(screen=True)
    screened.model.write_rows("lm_head.weight", 500, float_to_bf16(grown).view(np.uint8)[None])
    with pytest.raises(GptossError, match="before the next forward or edit"):
        logits.numpy()  # nobody knows them any more
    after = screened.draw(screened.step(screen=True), settings(rng, 2, temperature=0))[0]
    assert (after == screened.step(screen=False).numpy().argmax(axis=1)).all(), "tokens after the edit"
    assert after[0] == 500


def test_an_adapter_that_comes_later_does_not_change_logits(isa, rng):
    screened = Screened(rng, isa, bf16(rng, 1000, 192), rows=3, slot=0)
    before = screened.step(screen=False).numpy()
    logits = screened.step(screen=True)
    matrix = ("lm_head", 1, normal(rng, 2, 192), normal(rng, 2, 1000))
    screened.model.set_intervention(0, [], _native.Adapter(screened.model, [matrix]))
    assert_same_bits(logits.numpy(), before, "logits of a step before the adapter came")
    assert (screened.step(screen=True).numpy() != before).any(), "the adapter is at work"


@pytest.mark.parametrize("dtype", ["bf16", "packed", "q8"])
def test_steps_without_logits_leave_none_to_complete(isa, rng, dtype):
    screened = Screened(rng, isa, bf16(rng, 1000, 192), rows=2, dtype=dtype)
    assert screened.step(screen=True, wanted=0).numpy().shape == (0, 1000)
    screened.model.write_rows("lm_head.weight", 0, np.zeros((1, 384), np.uint8))
    assert screened.step(screen=True).numpy().shape == (2, 1000)


@pytest.mark.parametrize("dtype", ["bf16", "packed", "q8"])
def test_a_row_that_is_not_finite_is_reported(isa, rng, dtype):
    lm_head = bf16(rng, 1000, 128)
    lm_head[3, 3] = 0x7F80
    screened = Screened(rng, isa, lm_head, rows=3, dtype=dtype)
    status = screened.draw(screened.step(screen=True), settings(rng, 3))[5]
    assert (status == 1).all()
