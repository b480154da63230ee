"""Reading and writing a loaded model's numbers, on every device. Oracle: the arrays it was made from."""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.errors import GptossError
from gptoss_native.parameters.store import rows_of, specs_of

from tests.conftest import cpu_backend
from tests.model.random_model import native_config, random_arrays, random_config
from tests.model.stepping import run


def make(rng, backend, numerics="fast"):
    config = random_config(rng)
    arrays = random_arrays(rng, config)
    # A model on the CPU uses the arrays in place.
    own = {name: array.copy() for name, array in arrays.items()}
    model = _native.Model(backend, native_config(config), own, numerics, max_rows=8)
    return config, arrays, model


def as_rows(array, spec):
    return np.ascontiguousarray(array).view(np.uint8).reshape(rows_of(spec))


def test_rows_are_read_as_the_checkpoint_has_them(rng, backend):
    config, arrays, model = make(rng, backend)
    for name, spec in specs_of(config).items():
        expected = as_rows(arrays[name], spec)
        np.testing.assert_array_equal(model.read_rows(name, 0, len(expected)), expected, err_msg=name)
        first, end = sorted(rng.integers(0, len(expected) + 1, 2).tolist())
        np.testing.assert_array_equal(
            model.read_rows(name, first, end - first), expected[first:end], err_msg=name
        )


def test_a_model_whose_rows_were_written_is_the_model_of_those_numbers(rng, backend):
    """Some rows of every tensor; then rows and logits are, bit for bit, those of a model made with them."""
    config, arrays, model = make(rng, backend)
    other = random_arrays(rng, config)
    for name, spec in specs_of(config).items():
        rows, new = as_rows(arrays[name], spec).copy(), as_rows(other[name], spec)
        for _ in range(2):
            first, end = sorted(rng.integers(0, len(rows) + 1, 2).tolist())
            model.write_rows(name, first, np.ascontiguousarray(new[first:end]))
            rows[first:end] = new[first:end]
        np.testing.assert_array_equal(model.read_rows(name, 0, len(rows)), rows, err_msg=name)
        arrays[name] = rows.view(arrays[name].dtype).reshape(arrays[name].shape)
    tokens = [rng.integers(0, config.vocab_size, 5).tolist()]
    read = {
        name: model.read_rows(name, 0, rows_of(spec)[0]).view(arrays[name].dtype).reshape(arrays[name].shape)
        for name, spec in specs_of(config).items()
    }
    expected = run(rng, backend, native_config(config), arrays, tokens, numerics="fast")
    found = run(rng, backend, native_config(config), read, tokens, numerics="fast")
    np.testing.assert_array_equal(found[0], expected[0])
    # The written model itself, not only what is read from it.
    cache = _native.KvCache(model, 16, 1, 1)
    table = np.zeros((1, 1), np.int32)
    ids, start, context = np.array(tokens[0], np.int32), np.array([0, 5], np.int32), np.zeros(1, np.int32)
    logits = model.forward(cache, ids, start, context, table, table, np.arange(5, dtype=np.int32), 0)
    np.testing.assert_array_equal(logits.numpy(), expected[0])


def test_wrong_rows_are_refused_by_name(rng):
    config, _, model = make(rng, cpu_backend("portable", 2))
    name = "model.layers.0.mlp.router.weight"
    count = config.num_local_experts
    wrong = [
        (lambda: model.read_rows("lm_head.bias", 0, 1), "the model has no tensor lm_head.bias"),
        (lambda: model.read_rows(name, count, 1), f"rows {count} to {count + 1} of {name}"),
        (lambda: model.read_rows(name, -1, 1), "rows -1 to 0"),
        (lambda: model.read_rows(name, 2**62, 2**62), "are asked for"),
        (lambda: model.write_rows(name, 0, np.zeros((1, 3), np.uint8)), r"rows has shape \(1, 3\)"),
        (lambda: model.write_rows(name, 0, np.zeros((1, 2 * config.hidden_size), np.int8)), "dtype int8"),
    ]
    scales = "model.layers.0.mlp.experts.down_proj_scales"
    nan = np.full((1, config.intermediate_size // 32), 255, np.uint8)
    wrong.append((lambda: model.write_rows(scales, 0, nan), "a scale of 255"))
    for call, words in wrong:
        with pytest.raises(GptossError, match=words):
            call()
