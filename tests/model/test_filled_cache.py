"""KvCache.fill, on every backend. Oracle: the distribution it promises, and NaN in whatever it leaves out."""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native.config import FULL, SLIDING
from gptoss_native.errors import GptossError

from tests.model.random_model import native_config, random_arrays, random_config
from tests.model.stepping import Runner

NAN = 0x7FC0  # bf16
LENGTH = 64


def test_pages_full_of_nan_become_finite(rng, backend):
    config = random_config(
        rng, num_hidden_layers=2, layer_types=(SLIDING, FULL), sliding_window=40, vocab_size=60
    )
    arrays = random_arrays(rng, config)
    arrays["model.embed_tokens.weight"][0] = NAN
    for numerics in ("exact", "fast") if backend.device == "cpu" else ("fast",):
        check_filling(Runner(rng, backend, native_config(config), arrays, [LENGTH + 1], numerics=numerics))


def check_filling(runner):
    runner.step([[0] * LENGTH], [(0, LENGTH)])
    for layer, table in enumerate((runner.window_pages, runner.full_pages)):
        pages = [page for page in table[0].tolist() if page >= 0]
        assert np.isnan(runner.cache.read_keys(layer, pages)).all()
        runner.cache.fill(layer, pages, seed=3)
        keys = runner.cache.read_keys(layer, pages)
        assert np.abs(keys).max() <= 1
        assert abs(keys.mean()) < 0.05
        assert keys.std() == pytest.approx(3**-0.5, rel=0.05)
        assert len(np.unique(keys[:, 0, 0], axis=0)) == len(pages)
        runner.cache.fill(layer, pages, seed=3)
        np.testing.assert_array_equal(runner.cache.read_keys(layer, pages), keys)
    assert np.isfinite(runner.step([[1]], [(0, 1)])).all()


def test_only_pages_that_there_are(rng, backend):
    config = random_config(rng, num_hidden_layers=1, layer_types=(FULL,))
    runner = Runner(rng, backend, native_config(config), random_arrays(rng, config), [20], numerics="fast")
    runner.cache.fill(0, [], seed=0)
    for layer, pages, message in (
        (1, [0], "layer is 1, expected 0 to 0"),
        (0, [2], "page is 2, expected 0 to 1"),
    ):
        with pytest.raises(GptossError, match=message):
            runner.cache.fill(layer, pages, seed=0)
