"""A model, cache or step that does not fit is refused with an error that names what is wrong."""

import weakref

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.compare import assert_same_bits
from tests.model.random_model import native_config, random_arrays, random_config

PAGE, PAGES, ROWS = 16, 3, 20


@pytest.fixture
def model(rng, request):
    """(config, arrays) with layers of both kinds."""
    config = random_config(
        rng, num_hidden_layers=2, layer_types=(), sliding_window=16, max_position_embeddings=40
    )
    return native_config(config), random_arrays(rng, config)


def build(backend, model, rows=ROWS):
    """A native model and its cache, which holds the tokens that come before those of `arguments`."""
    from gptoss_native import _native

    native = _native.Model(backend, *model, "exact" if backend.device == "cpu" else "fast", rows)
    cache = _native.KvCache(native, PAGE, PAGES, PAGES)
    before = {
        "token_ids": np.zeros(15, np.int32),
        "row_start": np.int32([0, 3, 15]),
        "context": np.int32([0, 0]),
        "full_pages": np.int32([[2, -1], [1, 0]]),
        "window_pages": np.int32([[0, -1], [1, 2]]),
        "logit_rows": np.empty(0, np.int32),
    }
    native.forward(cache, **before)
    return native, cache


def arguments(config, rng) -> dict:
    """A step of 10 and 8 tokens after 3 and 12 others."""
    return {
        "token_ids": rng.integers(0, config["vocab_size"], 18).astype(np.int32),
        "row_start": np.int32([0, 10, 18]),
        "context": np.int32([3, 12]),
        "full_pages": np.int32([[2, -1], [1, 0]]),
        "window_pages": np.int32([[0, -1], [1, 2]]),
        "logit_rows": np.int32([17, 0]),
    }


def replaced(name, index, value):
    def change(step):
        step[name] = step[name].copy()
        step[name][index] = value

    return change


WRONG_STEPS = {
    "a token past the vocabulary": replaced("token_ids", 4, 10**6),
    "a negative token": replaced("token_ids", 4, -1),
    "rows out of order": replaced("row_start", 1, 18),
    "a first row that is not 0": replaced("row_start", 0, 1),
    "a negative context": replaced("context", 0, -1),
    "a context past the table": replaced("context", 1, 30),
    "a context past max_position_embeddings": replaced("context", 1, 2**31 - 1),
    "a page past the pool": replaced("full_pages", (1, 0), PAGES),
    "a page of a full layer given back": replaced("full_pages", (1, 0), -1),
    "a page given back inside the window": replaced("window_pages", (1, 0), -1),
    "no page for a new token": replaced("window_pages", (1, 1), -1),
    "a page far below zero": replaced("window_pages", (0, 0), -(2**31)),
    "a logit row past the step": replaced("logit_rows", 0, 18),
    "a negative logit row": replaced("logit_rows", 0, -1),
    "tokens missing": lambda step: step.update(token_ids=step["token_ids"][:-1].copy()),
    "tables of two widths": lambda step: step.update(window_pages=np.int32([[0, -1, -1], [1, 2, -1]])),
    "tables for one sequence": lambda step: step.update(full_pages=step["full_pages"][:1]),
    "64-bit tokens": lambda step: step.update(token_ids=step["token_ids"].astype(np.int64)),
    "a list": lambda step: step.update(token_ids=step["token_ids"].tolist()),
    "no sequence": lambda step: step.update(
        token_ids=np.empty(0, np.int32), row_start=np.int32([0]), context=np.empty(0, np.int32)
    ),
}


def test_the_step_that_the_wrong_ones_are_made_from_is_right(backend, rng, model):
    native, cache = build(backend, model)
    logits = native.forward(cache, **arguments(model[0], rng)).numpy()
    assert logits.shape == (2, model[0]["vocab_size"])
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("what", WRONG_STEPS)
def test_a_wrong_step_is_refused_and_leaves_the_cache_alone(rng, model, what):
    from gptoss_native import _native

    native, cache = build(_native.Backend(), model)
    right = arguments(model[0], rng)
    expected = native.forward(cache, **right).numpy()
    wrong = dict(right)
    WRONG_STEPS[what](wrong)
    with pytest.raises(GptossError):
        native.forward(cache, **wrong)
    assert_same_bits(native.forward(cache, **right).numpy(), expected, f"the right step after {what}")


def test_more_rows_than_the_model_was_made_for_are_refused(rng, model):
    from gptoss_native import _native

    native, cache = build(_native.Backend(), model, rows=17)
    with pytest.raises(GptossError, match="17"):
        native.forward(cache, **arguments(model[0], rng))


def test_a_step_size_whose_products_overflow_is_refused(model):
    from gptoss_native import _native

    with pytest.raises(GptossError, match="max_rows"):
        _native.Model(_native.Backend(), *model, "exact", 2**30)


def test_the_cache_of_another_model_is_refused(rng, model):
    from gptoss_native import _native

    backend = _native.Backend()
    native, _ = build(backend, model)
    _, other = build(backend, model)
    with pytest.raises(GptossError, match="another model"):
        native.forward(other, **arguments(model[0], rng))


@pytest.mark.parametrize("spoil", ["missing", "shape", "dtype", "strides", "not an array"])
def test_a_spoilt_tensor_is_refused_by_name(rng, model, spoil):
    from gptoss_native import _native

    config, arrays = model
    name = str(rng.choice(list(arrays)))
    array = arrays.pop(name)
    if spoil == "shape":
        arrays[name] = np.concatenate([array, array])
    elif spoil == "dtype":
        arrays[name] = array.astype(np.float32)
    elif spoil == "strides":
        arrays[name] = np.repeat(array, 2, axis=-1)[..., ::2]
    elif spoil == "not an array":
        arrays[name] = array.tolist()
    with pytest.raises(GptossError, match=name):
        _native.Model(_native.Backend(), config, arrays, "exact", ROWS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head_dim", 128),
        ("hidden_size", 33),
        ("hidden_size", 0),
        ("intermediate_size", -32),
        ("num_key_value_heads", 0),
        ("num_local_experts", 129),
        ("num_experts_per_tok", 0),
        ("num_hidden_layers", 2**40),
        ("vocab_size", "many"),
        ("num_attention_heads", 2**26),  # times 64 it would be 0 in 32 bits
        ("rms_norm_eps", float("nan")),
        ("rope_theta", -1.0),
        ("swiglu_limit", float("inf")),
        ("windows", [16]),
        ("windows", [16, -1]),
    ],
)
def test_a_wrong_config_is_refused_by_field(model, name, value):
    from gptoss_native import _native

    config, arrays = model
    with pytest.raises(GptossError, match=name.removesuffix("s")):
        _native.Model(_native.Backend(), {**config, name: value}, arrays, "exact", ROWS)
    del config[name]
    with pytest.raises(GptossError, match=name):
        _native.Model(_native.Backend(), config, arrays, "exact", ROWS)


@pytest.mark.parametrize(
    "settings", [(0, 1, 1), (-16, 1, 1), (17, 1, 1), (16, 0, 1), (16, 1, 0), (16, 2**31 - 1, 1)]
)
def test_a_cache_that_cannot_be_is_refused(model, settings):
    from gptoss_native import _native

    native, _ = build(_native.Backend(), model)
    with pytest.raises((GptossError, MemoryError)):
        _native.KvCache(native, *settings)


def test_arrays_are_used_in_place_and_kept_alive(rng, model):
    """No copy is made, so that editing a weight edits the model."""
    from gptoss_native import _native

    config, arrays = model
    native, cache = build(_native.Backend(), (config, dict(arrays)))
    step = arguments(config, rng)
    before = native.forward(cache, **step).numpy()
    arrays["lm_head.weight"][:] = 0
    assert (native.forward(cache, **step).numpy() == 0).all()
    assert (before != 0).all()


def test_the_caller_may_empty_its_dict(rng, model):
    """The model keeps the arrays in a dict of its own: otherwise its weights would dangle."""
    from gptoss_native import _native

    config, arrays = model
    kept = [weakref.ref(array) for array in arrays.values()]
    native, cache = build(_native.Backend(), (config, arrays))
    arrays.clear()
    assert all(reference() is not None for reference in kept)
    step = arguments(config, rng)
    assert np.isfinite(native.forward(cache, **step).numpy()).all()


def test_logits_are_refused_once_a_later_step_has_overwritten_them(backend, rng, model):
    native, cache = build(backend, model)
    step = arguments(model[0], rng)
    old = native.forward(cache, **step)
    kept = old.numpy()
    new = native.forward(cache, **step)
    assert_same_bits(new.rows(1, 1), kept[1:], "one row of the two")
    with pytest.raises(GptossError, match="gone on to step"):
        old.numpy()
    with pytest.raises(GptossError, match="rows 1 to 3 are asked for, the step has 2"):
        new.rows(1, 2)
