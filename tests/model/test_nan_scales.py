"""MXFP4 scales of 255 are NaN (OCP MX v1.0, section 5.4.1): a model that holds any is refused, by name."""

import numpy as np
import pytest
from gptoss_native import LLM
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.errors import CheckpointError

from tests.checkpoints import TINY
from tests.checkpoints import random_arrays as tiny_arrays
from tests.conftest import cpu_backend
from tests.model.random_model import native_config, random_arrays, random_config


def make(config, arrays, numerics):
    from gptoss_native import _native

    backend = cpu_backend(_native.cpu_isas()[-1], 2)
    return _native.Model(backend, native_config(config), arrays, numerics, max_rows=1)


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_model_with_nan_scales_is_refused(rng, numerics, count):
    config = random_config(rng, num_hidden_layers=3)
    arrays = random_arrays(rng, config)
    name = f"model.layers.{rng.integers(3)}.mlp.experts.{rng.choice(['gate_up', 'down'])}_proj_scales"
    scales = arrays[name]
    scales[rng.random(scales.shape) < 0.01] = 254
    make(config, arrays, numerics)
    places = np.sort(rng.choice(scales.size, count, replace=False))
    scales.reshape(-1)[places] = 255
    expert, row, block = np.unravel_index(places[0], scales.shape)
    place = f"expert {expert}, row {row}, block {block};"
    says = f"tensor {name}: {count} of {scales.size} scales are 255, .*{place}"
    with pytest.raises(CheckpointError, match=says):
        make(config, arrays, numerics)


def test_so_is_a_checkpoint_on_disk(tmp_path, rng):
    arrays = tiny_arrays(TINY, rng)
    arrays["model.layers.1.mlp.experts.down_proj_scales"][-1, -1, -1] = 255
    write_checkpoint(tmp_path / "model", TINY, arrays, "openai", None)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.down_proj_scales: 1 of"):
        LLM(tmp_path / "model", max_model_len=32)
