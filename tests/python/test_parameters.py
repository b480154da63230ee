"""Parameters as people read and write them. Oracle: the checkpoint's arrays, tests/reference/formats.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gptoss_native import LLM, open_checkpoint
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.errors import RequestError
from gptoss_native.parameters import Parameters
from gptoss_native.parameters.store import FileStore, specs_of

from tests.checkpoints import TINY, write_tiny
from tests.reference.formats import bf16_to_float, float_to_bf16, mxfp4_to_float

MLP = "model.layers.1.mlp."
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def arrays(tmp_path, rng):
    return write_tiny(tmp_path / "model", rng)


@pytest.fixture
def llm(tmp_path, arrays):
    with LLM(tmp_path / "model", device="cpu", max_model_len=64) as llm:
        yield llm


def stored(packed):
    return packed if isinstance(packed, tuple) else (packed,)


def decoded(arrays, name):
    if name in arrays:
        return bf16_to_float(arrays[name])
    return mxfp4_to_float(arrays[name + "_blocks"], arrays[name + "_scales"])


def test_every_parameter_is_what_the_checkpoint_holds(llm, arrays):
    logical = {name.removesuffix("_scales").removesuffix("_blocks") for name in arrays}
    assert set(llm.parameters) == logical
    assert sum(parameter.nbytes for parameter in llm.parameters.values()) == sum(
        a.nbytes for a in arrays.values()
    )
    for name, parameter in llm.parameters.items():
        expected = decoded(arrays, name)
        assert parameter.name == name
        assert parameter.shape == expected.shape
        found = parameter.decode()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=name)
        names = (name,) if parameter.dtype == "BF16" else (name + "_blocks", name + "_scales")
        for array, where in zip(stored(parameter.packed()), names, strict=True):
            np.testing.assert_array_equal(array, arrays[where], err_msg=where)


@pytest.mark.parametrize("model", ["demo", "tiny", *sorted(path.name for path in GOLDEN.iterdir())])
def test_writing_what_was_decoded_changes_no_bit(tmp_path, rng, model):
    if model == "tiny":
        write_tiny(tmp_path / "tiny", rng)
    place = {"demo": "demo", "tiny": tmp_path / "tiny"}.get(model, GOLDEN / model)
    with LLM(place, device="cpu", max_model_len=64) as llm:
        for parameter in llm.parameters.values():
            before = parameter.packed()
            report = parameter.write(parameter.decode())
            after = parameter.packed()
            for a, b in zip(stored(before), stored(after), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=parameter.name)
            assert (report.values, report.saturated, report.max_error) == (parameter.size, 0, 0)
        assert llm.edits == []


def test_parts_are_those_of_the_whole(llm, arrays, rng):
    experts, rows = TINY.num_local_experts, TINY.hidden_size
    whole = decoded(arrays, MLP + "experts.down_proj")
    down = llm.parameters[MLP + "experts.down_proj"]
    expert, row = int(rng.integers(experts)), int(rng.integers(rows))
    first, end = sorted(rng.integers(0, rows + 1, 2).tolist())
    np.testing.assert_array_equal(down.decode(expert=expert), whole[expert])
    np.testing.assert_array_equal(down.decode(row, expert), whole[expert][row])
    np.testing.assert_array_equal(down.experts[expert].decode(slice(first, end)), whole[expert][first:end])
    np.testing.assert_array_equal(llm.layers[1].experts[expert].down_proj.decode(-1), whole[expert][-1])
    bias = decoded(arrays, MLP + "experts.down_proj_bias")
    np.testing.assert_array_equal(llm.layers[1].experts[expert].down_proj_bias.decode(), bias[expert])
    np.testing.assert_array_equal(llm.layers[1].down_proj_bias.decode(row, expert), bias[expert][row])
    sinks = decoded(arrays, "model.layers.0.self_attn.sinks")
    np.testing.assert_array_equal(llm.layers[0].sinks.decode(slice(1, 3)), sinks[1:3])
    blocks, scales = down.packed(row, expert)
    assert blocks.shape == (TINY.intermediate_size // 32, 16)
    np.testing.assert_array_equal(scales, arrays[MLP + "experts.down_proj_scales"][expert, row])


def test_names_may_be_short_and_patterns_find_many(llm):
    found = llm.parameters
    assert found["layers.1.router.bias"].name == MLP + "router.bias"
    assert found["layers.1.q_proj.weight"].name == "model.layers.1.self_attn.q_proj.weight"
    assert found[MLP + "experts.down_proj_blocks"].name == MLP + "experts.down_proj"
    assert found["layers.1.experts.2.gate_up_proj"].name == MLP + "experts.2.gate_up_proj"
    names = {
        "model.layers.*.mlp.router.bias": [f"model.layers.{i}.mlp.router.bias" for i in range(2)],
        "layers.1.experts.2.*": [
            MLP + f"experts.2.{n}"
            for n in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
        ],
        "lm_head.weight": ["lm_head.weight"],
        "*.layers.0.self_attn.?_proj.bias": [f"model.layers.0.self_attn.{n}_proj.bias" for n in "qkvo"],
    }
    for pattern, expected in names.items():
        assert [parameter.name for parameter in found.match(pattern)] == expected, pattern
    assert len(found.match("layers.*.experts.*.down_proj")) == 2 * TINY.num_local_experts
    for wrong in (
        "layers.2.router.bias",
        "layers.1.experts.3.down_proj",
        "layers.1.experts.-1.down_proj",
        "",
        7,
    ):
        with pytest.raises(KeyError, match=r"no parameter is called|no name"):
            found[wrong]
        assert wrong not in found
    with pytest.raises(KeyError, match=r"the nearest are layers\.[01]\.router\.bias"):
        found["layers.0.router.bia"]
    with pytest.raises(RequestError, match="no parameter fits"):
        found.match("layers.9.*")


def test_writes_round_as_the_formats_do(llm, rng):
    """bf16: tests/reference/formats.py; MXFP4: each value within its block's half step, or saturated."""
    router = llm.layers[0].router.weight
    new = rng.standard_normal(router.shape)
    report = router.write(new)
    expected = bf16_to_float(float_to_bf16(new))
    np.testing.assert_array_equal(router.decode(), expected)
    assert report.max_error == pytest.approx(np.abs(expected - new.astype(np.float32)).max(), rel=1e-6)
    expert = llm.layers[0].experts[1].gate_up_proj
    new = rng.standard_normal(expert.shape).astype(np.float32)
    report = expert.write(new)
    error = expert.decode().astype(np.float64) - new
    assert report.relative_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(new), rel=1e-5)
    assert 0.05 < report.relative_error < 0.2
    others = llm.layers[0].experts[0].gate_up_proj.decode()
    expert.write(new * 2, rows=None)
    np.testing.assert_array_equal(llm.layers[0].experts[0].gate_up_proj.decode(), others)


def test_wrong_writes_say_what_is_wrong_and_change_nothing(llm, rng):
    weight = llm.layers[0].router.weight
    before = weight.packed()
    good = weight.decode()
    nan = good.copy()
    nan[2, 5] = np.nan
    wrong = [
        (good[:-1], r"shape \[2, 32\], this part of it \[3, 32\]"),
        (nan, "row 2, column 5 is nan"),
        (np.full_like(good, 3.4e38), r"3.*e.38, expected a finite number that bf16 can hold"),
        (good.astype(complex), "expected an array of real numbers"),
        ("numbers", "expected an array of real numbers"),
        (None, "expected an array of real numbers"),
        (np.zeros(good.shape, bool), "expected an array of real numbers"),
        ([[1, 2], [3]], "expected an array of real numbers"),
    ]
    for array, words in wrong:
        with pytest.raises(RequestError, match=words):
            weight.write(array)
    expert = llm.layers[0].experts[0].down_proj
    big = np.zeros(expert.shape)
    big[31, 63] = 1e39
    with pytest.raises(RequestError, match="row 31, column 63 is inf"):
        expert.write(big)
    for rows in (3, -4, slice(0, 3, 2), 1.0, True, "all"):
        with pytest.raises(RequestError, match="has 3 rows, found rows ="):
            weight.decode(rows)
    for call, words in [
        (lambda: weight.decode(expert=1), "not divided among experts"),
        (lambda: weight.experts, "not divided among experts"),
        (lambda: expert.experts, "not divided among experts"),
        (lambda: llm.layers[0].down_proj.decode(rows=1), "say which expert"),
        (lambda: llm.layers[0].down_proj.decode(expert=3), "has experts 0 to 2, found 3"),
        (lambda: weight.write_packed(good), "found float32"),
        (lambda: expert.write_packed(*expert.packed()[:1]), "1 arrays were passed, expected 2"),
        (lambda: expert.write_packed(expert.packed()[0], np.full((32, 2), 255, np.uint8)), "a scale is 255"),
    ]:
        with pytest.raises(RequestError, match=words):
            call()
    np.testing.assert_array_equal(weight.packed(), before)
    assert llm.edits == []


def test_statistics_and_histograms_are_numpy_s(llm):
    for name in (
        "lm_head.weight",
        MLP + "experts.gate_up_proj",
        MLP + "experts.1.down_proj",
        "model.norm.weight",
    ):
        parameter = llm.parameters[name]
        values = parameter.decode().astype(np.float64)
        found = parameter.statistics()
        expected = values.mean(), values.std(), values.min(), values.max(), np.linalg.norm(values)
        assert (found.mean, found.std, found.min, found.max, found.norm) == pytest.approx(
            expected, rel=1e-6, abs=1e-9
        )
        assert (found.zeros, found.values) == (np.count_nonzero(values == 0), values.size)
        counts, edges = parameter.histogram(16)
        np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
        assert counts.sum() == values.size


def test_files_can_be_read_like_a_model(tmp_path, arrays):
    store = FileStore(open_checkpoint(tmp_path / "model").arrays(), specs_of(TINY))
    for name, parameter in Parameters(TINY, store).items():
        np.testing.assert_array_equal(parameter.decode(), decoded(arrays, name), err_msg=name)


def test_numbers_that_are_not_finite_are_counted_and_can_be_replaced(tmp_path, rng, arrays):
    """A checkpoint may hold them; only what is written here must be finite."""
    bias, down = MLP + "router.weight", MLP + "experts.down_proj"
    arrays[bias][0, :2] = 0x7FC0, 0xFF80  # NaN and -infinity
    arrays[down + "_scales"][0, 3, 1], arrays[down + "_blocks"][0, 3, 1] = 254, 0x17  # 6 and 0.5, times 2^127
    arrays["model.layers.0.self_attn.sinks"][:] = 0x7FC0
    write_checkpoint(tmp_path / "odd", TINY, arrays)
    with LLM(tmp_path / "odd", device="cpu", max_model_len=64) as llm:
        for name in (bias, down):
            parameter = llm.parameters[name]
            values = parameter.decode()
            finite = values[np.isfinite(values)].astype(np.float64)
            found = parameter.statistics()
            assert found.not_finite == values.size - finite.size > 0
            assert (found.min, found.max) == (finite.min(), finite.max())
            assert found.mean == pytest.approx(finite.mean())
            assert found.norm == pytest.approx(np.linalg.norm(finite))
            counts, edges = parameter.histogram(7)
            np.testing.assert_array_equal(counts, np.histogram(finite, edges)[0])
            assert (edges[0], edges[-1], counts.sum()) == (finite.min(), finite.max(), finite.size)
        nothing = llm.layers[0].sinks
        assert np.isnan(nothing.statistics().mean)
        assert nothing.statistics().not_finite == nothing.size
        assert nothing.histogram(3)[0].tolist() == [0, 0, 0]
        with pytest.raises(RequestError, match="expected a finite number"):
            llm.parameters[bias].update(lambda values: values * 2)
        with llm.edit("mended") as e:
            for name in (bias, down, "layers.0.sinks"):
                e.set(name, 0.5)
        for name in (bias, down, "layers.0.sinks"):
            assert (llm.parameters[name].decode() == 0.5).all()
        assert all(np.isfinite(diff.norm) or diff.changed for diff in llm.diff())
        llm.save_patch(tmp_path / "mend.safetensors")
        llm.undo()
        llm.apply_patch(tmp_path / "mend.safetensors")


def test_packed_numbers_must_be_finite(llm):
    bias, down = llm.layers[1].router.bias, llm.layers[1].experts[2].down_proj
    for bits in (0x7FC0, 0x7F80, 0xFF80):
        with pytest.raises(RequestError, match="found NaN or infinity, expected finite numbers"):
            bias.write_packed(np.full(bias.shape, bits, np.uint16))
    blocks, scales = down.packed()
    with pytest.raises(RequestError, match="a scale of 253 or more makes"):
        down.write_packed(np.full_like(blocks, 0x77), np.full_like(scales, 253))
    with pytest.raises(RequestError, match="a scale is 255"):
        down.write_packed(blocks, np.full_like(scales, 255))
    assert llm.edits == []
    down.write_packed(np.full_like(blocks, 0x33), np.full_like(scales, 253))
    assert (down.decode() == 1.5 * 2.0**126).all()


def test_numpy_s_numbers_and_wrong_ones(llm):
    down = llm.layers[1].down_proj
    np.testing.assert_array_equal(
        down.decode(expert=np.int64(2)), llm.layers[1].experts[2].down_proj.decode()
    )
    part = llm.layers[1].experts[0].down_proj
    np.testing.assert_array_equal(part.decode(np.uint8(3)), part.decode(3))
    for wrong in (True, 1.0, "1", None):
        if wrong is not None:
            with pytest.raises(RequestError, match="has experts 0 to 2, found"):
                down.decode(expert=wrong)
        with pytest.raises(RequestError, match="bins must be a whole number from 1 to"):
            part.histogram(wrong)
    for rows in (slice(0, 1.5), slice("a", None), 1.0):
        with pytest.raises(RequestError, match="pass one of them or a slice"):
            part.decode(rows)
    for bins in (0, -1, 10**12):
        with pytest.raises(RequestError, match="bins must be"):
            part.histogram(bins)


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_too_large_are_an_error_and_no_warning(llm):
    with llm.edit() as e:
        e.set("layers.0.sinks", 1e38)
        for call in (lambda: e.set("lm_head.weight", 1e39), lambda: e.scale("layers.0.sinks", 100)):
            with pytest.raises(RequestError, match="expected a finite number"):
                call()
        assert e.set("layers.0.router.bias", np.int32(2)).values == 3


def test_round_trips_at_the_ends_of_the_scales(llm, rng):
    """Every scale from 0 to 254, with codes as large as float32 can tell: no bit changes."""
    down = llm.layers[1].down_proj
    blocks, scales = down.packed()
    scales = rng.permutation(np.resize(np.arange(255, dtype=np.uint8), scales.size)).reshape(scales.shape)
    blocks = rng.integers(0, 256, blocks.shape, dtype=np.uint8)
    blocks[scales >= 253] &= 0xBB  # at most 1.5: times 2^127 that is finite
    blocks[scales >= 254] &= 0xAA  # 0 or 1
    down.write_packed(blocks, scales)
    edits = len(llm.edits)
    report = down.write(down.decode())
    assert (report.max_error, report.saturated, len(llm.edits)) == (0, 0, edits)
    for found, expected in zip(down.packed(), (blocks, scales), strict=True):
        np.testing.assert_array_equal(found, expected)
