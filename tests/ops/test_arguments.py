"""Arrays of a wrong shape, dtype or layout are refused with an error that names the argument."""

import numpy as np
import pytest
from gptoss_native.errors import GptossError

from tests.ops.inputs import bf16, empty, linear, mxfp4, norm_weight, normal


def arguments(rng) -> dict:
    weight, bias = linear(rng, 64, 128)
    return {"input": normal(rng, 3, 128), "weight": weight, "bias": bias, "residual": normal(rng, 3, 64)}


@pytest.mark.parametrize("name", ["input", "weight", "bias", "residual"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.astype(np.float64),
        lambda a: a[..., :-1].copy(),
        lambda a: a[None],
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a.byteswap().view(a.dtype.newbyteorder()),
    ],
    ids=["dtype", "shape", "rank", "strides", "byte order"],
)
def test_a_spoilt_argument_is_refused(backend, rng, name, spoil):
    given = arguments(rng)
    given[name] = spoil(given[name])
    with pytest.raises(GptossError):
        backend.attention_out(**given)


def test_an_output_that_cannot_be_written_is_refused(backend, rng):
    given = arguments(rng)
    given["residual"].flags.writeable = False
    with pytest.raises(GptossError):
        backend.attention_out(**given)


@pytest.mark.parametrize(
    ("row_start", "context", "pages"),
    [
        ([0, 2], [0], [[0]]),  # rows missing
        ([0, 4], [0], [[0]]),  # rows too many
        ([1, 3], [0], [[0]]),  # first row skipped
        ([0, 3], [-1], [[0]]),
        ([0, 3], [0], [[1]]),  # no such page
        ([0, 3], [0], [[-1]]),  # needed and not held
        ([0, 3], [14], [[0]]),  # the table ends before the last row
        ([0, 2, 1, 3], [0, 0, 0], [[0], [0], [0]]),  # going back
    ],
)
def test_a_batch_that_does_not_fit_its_cache_is_refused(backend, rng, row_start, context, pages):
    keys, values = np.zeros((1, 1, 64, 16), np.float32), np.zeros((1, 1, 16, 64), np.float32)
    table = [np.array(a, np.int32) for a in (row_start, context, pages)]
    output = empty(3, 2, 64)
    with pytest.raises(GptossError):
        backend.paged_attention(normal(rng, 3, 2, 64), keys, values, bf16(rng, 2), *table, 0, output)
    assert np.isnan(output).all(), "written in spite of the error"


@pytest.mark.parametrize(
    ("start", "order"),
    [
        ([0, 2, 5], [0, 1, 2, 3, 4]),
        ([0, 2, 6], [0, 1, 2, 3, 4, 6]),
        ([0, 2, 6], [0, 1, 2, 3, -1, 5]),
        ([0, 7, 6], [0, 1, 2, 3, 4, 5]),
        ([1, 2, 6], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_expert_groups_out_of_range_are_refused(backend, rng, start, order):
    layer, groups = mxfp4(rng, 2, 64, 32), (np.array(start, np.int32), np.array(order, np.int32))
    with pytest.raises(GptossError):
        backend.moe_up(normal(rng, 3, 32), None, None, *groups, *layer, 7.0, 2, empty(6, 32), None, None)


def test_more_chosen_experts_than_there_are_is_refused(backend, rng):
    out = empty(2, 32), None, None, empty(2, 4, dtype=np.int32), empty(2, 4)
    groups = empty(4, dtype=np.int32), empty(8, dtype=np.int32)
    with pytest.raises(GptossError):
        backend.moe_gate(
            normal(rng, 2, 32), norm_weight(rng, 32), 1e-5, *linear(rng, 3, 32), 4, *out, *groups
        )
