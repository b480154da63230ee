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
def test_a_spoilt_argument_is_refused(cpu, rng, name, spoil):
    given = arguments(rng)
    given[name] = spoil(given[name])
    with pytest.raises(GptossError):
        cpu.attention_out(**given)


def test_an_output_that_cannot_be_written_is_refused(cpu, rng):
    given = arguments(rng)
    given["residual"].flags.writeable = False
    with pytest.raises(GptossError):
        cpu.attention_out(**given)


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
def test_a_batch_that_does_not_fit_its_cache_is_refused(cpu, rng, row_start, context, pages):
    keys, values = np.zeros((1, 1, 64, 16), np.float32), np.zeros((1, 1, 16, 64), np.float32)
    table = [np.array(a, np.int32) for a in (row_start, context, pages)]
    output = empty(3, 2, 64)
    with pytest.raises(GptossError):
        cpu.paged_attention(normal(rng, 3, 2, 64), keys, values, bf16(rng, 2), *table, 0, output)
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
def test_expert_groups_out_of_range_are_refused(cpu, rng, start, order):
    layer, groups = mxfp4(rng, 2, 64, 32), (np.array(start, np.int32), np.array(order, np.int32))
    with pytest.raises(GptossError):
        cpu.moe_up(normal(rng, 3, 32), None, None, *groups, *layer, 7.0, 2, empty(6, 32), None, None)


def test_more_chosen_experts_than_there_are_is_refused(cpu, rng):
    out = empty(2, 32), None, None, empty(2, 4, dtype=np.int32), empty(2, 4)
    groups = empty(4, dtype=np.int32), empty(8, dtype=np.int32)
    with pytest.raises(GptossError):
        cpu.moe_gate(normal(rng, 2, 32), norm_weight(rng, 32), 1e-5, *linear(rng, 3, 32), 4, *out, *groups)


@pytest.mark.parametrize("width", [40, 0])
@pytest.mark.parametrize("op", ["attention_in", "attention_out", "moe_gate", "unembed"])
def test_rows_that_are_no_whole_blocks_are_refused(cpu, rng, op, width):
    """Kernels read and write whole vectors: 40 floats would run past the end of a row's memory."""
    rows, norm = normal(rng, 2, width), np.ones(width, np.uint16)
    weight, bias = np.zeros((64, width), np.uint16), np.zeros(64, np.uint16)
    cache = [np.zeros(shape, np.float32) for shape in ((1, 1, 64, 16), (1, 1, 16, 64))]
    batch = np.int32([0, 2]), np.int32([0]), np.int32([[0]])
    experts = empty(2, 1, dtype=np.int32), empty(2, 1), empty(65, dtype=np.int32), empty(2, dtype=np.int32)
    given = {
        "attention_in": (
            *(rows, norm, 1e-5, weight, bias, weight, bias, weight, bias, np.ones(32, np.float32), 1.0),
            *(*batch, *cache, empty(2, 1, 64)),
        ),
        "attention_out": (rows, weight, bias, normal(rng, 2, 64)),
        "moe_gate": (rows, norm, 1e-5, weight, bias, 1, normal(rng, 2, width), None, None, *experts),
        "unembed": (rows, np.int32([0]), norm, 1e-5, weight, empty(1, 64)),
    }
    with pytest.raises(GptossError, match="multiple of 32"):
        getattr(cpu, op)(*given[op])


def test_an_unaligned_array_is_refused(cpu, rng):
    given = arguments(rng)
    raw = np.frombuffer(b"\0" + given["weight"].tobytes(), np.uint16, offset=1)
    given["weight"] = raw.reshape(given["weight"].shape)
    with pytest.raises(GptossError, match="aligned"):
        cpu.attention_out(**given)


def test_rows_promised_but_not_given_take_no_memory(cpu, rng):
    """row_start claims 2^31 - 2 rows: refused by the three that are there, not by running out of memory."""
    keys, values = np.zeros((1, 1, 64, 16), np.float32), np.zeros((1, 1, 16, 64), np.float32)
    for starts in ([0, 2**31 - 2], [0, 2**31 - 2, 3]):
        table = (
            np.int32(starts),
            np.zeros(len(starts) - 1, np.int32),
            np.zeros((len(starts) - 1, 1), np.int32),
        )
        with pytest.raises(GptossError, match="row_start"):
            cpu.paged_attention(normal(rng, 3, 2, 64), keys, values, bf16(rng, 2), *table, 0, empty(3, 2, 64))


def test_an_assignment_with_two_experts_is_refused(cpu, rng):
    groups = np.int32([0, 2, 6]), np.int32([0, 1, 2, 3, 4, 4])
    with pytest.raises(GptossError, match="twice"):
        cpu.moe_up(
            normal(rng, 3, 32), None, None, *groups, *mxfp4(rng, 2, 64, 32), 7.0, 2, empty(6, 32), None, None
        )


def test_an_output_over_the_indices_changes_no_index(cpu, rng):
    """The ids are checked once and copied: what the op writes over them is never used as an index."""
    table, rows = bf16(rng, 10, 1), 4096
    ids = rng.integers(0, 10, rows).astype(np.int32)
    expected = empty(rows, 1)
    cpu.embed(ids, table, expected)
    cpu.embed(ids, table, ids.view(np.float32).reshape(rows, 1))
    np.testing.assert_array_equal(ids.view(np.float32), expected[:, 0])


def test_grouping_survives_outputs_that_share_memory(cpu, rng):
    """Grouped ids are written where the experts' ids are: nothing but the shared array may suffer."""
    rows, chosen, hidden = 64, 4, 32
    shared, start = empty(rows, chosen, dtype=np.int32), empty(9, dtype=np.int32)
    cpu.moe_gate(
        *(normal(rng, rows, hidden), norm_weight(rng, hidden), 1e-5, *linear(rng, 8, hidden), chosen),
        *(empty(rows, hidden), None, None, shared, empty(rows, chosen), start, shared.reshape(-1)),
    )
    assert start[0] == 0
    assert start[-1] == rows * chosen
    assert sorted(shared.reshape(-1)) == list(range(rows * chosen))


@pytest.mark.parametrize(
    "shape", [(0, 64, 1), (2, 64, 0), (2, 0, 1), (2, 0, 2**27), (2**31 - 1, 0, 1), (129, 64, 1)]
)
def test_an_expert_layer_of_no_or_too_many_parts_is_refused(cpu, rng, shape):
    blocks, scales = np.empty((*shape, 16), np.uint8), np.empty(shape, np.uint8)
    layer = blocks, scales, np.empty(shape[:2], np.uint16)
    groups = np.zeros(3, np.int32), np.empty(0, np.int32)
    with pytest.raises(GptossError, match="blocks has"):
        cpu.moe_up(empty(0, 32), None, None, *groups, *layer, 7.0, 1, empty(0, 32), None, None)
    with pytest.raises(GptossError, match="blocks has"):
        cpu.moe_down(empty(0, 32), None, None, *groups, *layer, empty(0, 1), empty(0, 64))
