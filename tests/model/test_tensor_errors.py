"""A tensor that a model cannot use is named, with what it is, what it should be and the fix."""

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.model.random_model import native_config, random_arrays, random_config


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda a: a.astype(np.float32),
            r"has dtype float32, expected uint16 \(bf16 bits\) or uint8 \(MXFP4\); pass",
        ),
        (
            lambda a: a.astype(np.uint16 if a.dtype == np.uint8 else np.uint8),
            r"is (U8 \(uint8\), expected BF16 \(uint16\)|BF16 \(uint16\), expected U8 \(uint8\)); open",
        ),
        (lambda a: a[:-1].copy(), r"has shape \[\d+.*\], the config asks for \[\d+.*\]; use"),
    ],
    ids=["dtype", "kind", "shape"],
)
def test_a_tensor_that_does_not_fit_is_named(rng, spoil, says):
    from gptoss_native import _native

    config = random_config(rng)
    arrays, backend = random_arrays(rng, config), _native.Backend(threads=1)
    for name in rng.permutation(sorted(arrays))[:8].tolist():
        spoilt = {**arrays, name: spoil(arrays[name])}
        with pytest.raises(GptossError, match=rf"^tensor {name} {says}"):
            _native.Model(backend, native_config(config), spoilt, "exact", max_rows=1)
