"""MXFP4 as people write it. Oracle: tests/reference/mxfp4.py, the specification in float64."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.errors import GptossError

from tests.reference import mxfp4
from tests.reference.formats import BLOCK, mxfp4_to_float


def bits(rng, blocks):
    """Floats of any exponent: bit patterns drawn evenly, without infinity and NaN."""
    drawn = rng.integers(0, 1 << 32, (blocks, BLOCK), dtype=np.uint32)
    exponent = (drawn >> 23) & 255
    return np.where(exponent == 255, drawn & np.uint32(0x807FFFFF), drawn).astype(np.uint32).view(np.float32)


def one_scale(rng, blocks):
    """Blocks like those of a model, of one magnitude each, denormals among them."""
    with np.errstate(under="ignore", over="ignore"):
        size = np.exp2(rng.integers(-148, 120, (blocks, 1))).astype(np.float64)
        return (rng.standard_normal((blocks, BLOCK)) * size).astype(np.float32)


def ties(rng, blocks):
    """Midpoints between neighbouring codes, their neighbours among the floats, and the codes themselves."""
    edges = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7, 0, 0.5, 1, 1.5, 2, 3, 4, 7.999], np.float32)
    chosen = edges[rng.integers(0, len(edges), (blocks, BLOCK))]
    chosen = np.where(rng.random((blocks, BLOCK)) < 0.3, np.nextafter(chosen, np.float32(np.inf)), chosen)
    chosen = np.where(rng.random((blocks, BLOCK)) < 0.3, np.nextafter(chosen, np.float32(-1)), chosen)
    chosen = chosen * rng.choice([-1, 1], (blocks, BLOCK))
    return (chosen * np.exp2(rng.integers(-120, 120, (blocks, 1)))).astype(np.float32)


def sparse(rng, blocks):
    """Blocks of zeros of both signs, and blocks of one value among zeros."""
    values = np.zeros((blocks, BLOCK), np.float32)
    values[np.arange(blocks), rng.integers(0, BLOCK, blocks)] = bits(rng, blocks)[:, 0] * (
        rng.random(blocks) < 0.7
    )
    return np.where(rng.random((blocks, BLOCK)) < 0.5, values, -values)


KINDS = {"bits": bits, "one scale": one_scale, "ties": ties, "sparse": sparse}


def quantize(values, codes=None, scales=None):
    keeps = codes is not None
    codes = codes.copy() if keeps else np.zeros((len(values), BLOCK // 2), np.uint8)
    scales = scales.copy() if keeps else np.zeros((len(values), 1), np.uint8)
    return codes, scales, _native.quantize_mxfp4(values, codes, scales, keeps)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_scales_and_saturation_are_the_specification_s(rng, kind):
    """2.56 million values of each of four kinds: 10.2 million in all, every code and scale compared."""
    for _ in range(4):
        values = KINDS[kind](rng, 20_000)
        codes, scales, (saturated, largest, squared, energy) = quantize(values)
        exact = values.astype(np.float64)
        expected_codes, expected_scales, beyond = mxfp4.quantize(exact)
        np.testing.assert_array_equal(scales[:, 0], expected_scales)
        np.testing.assert_array_equal(mxfp4.unpack(codes), expected_codes)
        assert saturated == beyond.sum()
        error = mxfp4_to_float(codes[:, None], scales) - exact
        assert largest == pytest.approx(np.abs(error).max(), rel=1e-6)
        with np.errstate(over="ignore", under="ignore"):
            assert squared == pytest.approx(np.sum(error**2), rel=1e-5)
            assert energy == pytest.approx(np.sum(exact**2), rel=1e-5)


def test_what_was_decoded_is_stored_as_it_was(rng):
    """Every code at every scale whose numbers a float can hold, also where another scale would do."""
    scales = np.repeat(np.arange(253, dtype=np.uint8), 200)[:, None]
    codes = rng.integers(0, 256, (len(scales), BLOCK // 2), dtype=np.uint8)
    codes[::7] &= 0x99  # small magnitudes alone: another scale would do
    codes[::11] &= 0x88  # zeros of both signs
    values = _native.decode_mxfp4(codes, scales)
    np.testing.assert_array_equal(values, mxfp4_to_float(codes[:, None], scales))
    again, same, (saturated, largest, _, _) = quantize(values, codes, scales)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(same, scales)
    assert (saturated, largest) == (0, 0)


def test_a_scale_that_no_longer_fits_is_chosen_anew(rng):
    """One value of a block is changed: where the old scale cannot stand for it, there might be none."""
    codes = rng.integers(0, 256, (5_000, BLOCK // 2), dtype=np.uint8)
    scales = rng.integers(100, 140, (5_000, 1), dtype=np.uint8)
    values = _native.decode_mxfp4(codes, scales)
    values[:, 3] = rng.standard_normal(5_000)
    fresh_codes, fresh_scales, _ = quantize(values)
    found_codes, found_scales, _ = quantize(values, codes, scales)
    np.testing.assert_array_equal(found_scales, fresh_scales)
    np.testing.assert_array_equal(found_codes, fresh_codes)


def test_infinity_is_decoded_where_a_float_ends():
    codes = np.full((1, BLOCK // 2), 0x17, np.uint8)  # 6 and 0.5
    values = _native.decode_mxfp4(codes, np.array([[254]], np.uint8))
    assert np.isinf(values[0, 0])
    assert values[0, 1] == 2.0**126


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_with_their_place(rng, wrong):
    values = rng.standard_normal((4, 2 * BLOCK)).astype(np.float32)
    values[2, 37] = wrong
    with pytest.raises(GptossError, match=r"values\[2, 37\] is -?(nan|inf)"):
        _native.quantize_mxfp4(values, np.zeros((4, 32), np.uint8), np.zeros((4, 2), np.uint8), False)


THREADLESS = """
import resource
import numpy as np
from gptoss_native import _native

values = np.random.default_rng(1).standard_normal((2048, 1024)).astype(np.float32)
alone, shared = ((np.zeros((2048, 512), np.uint8), np.zeros((2048, 32), np.uint8)) for _ in range(2))
taken = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 20), most))  # less than the stack of a thread
report = _native.quantize_mxfp4(values, *alone, False)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
assert _native.quantize_mxfp4(values, *shared, False) == report
assert all((a == b).all() for a, b in zip(alone, shared))
"""


def test_it_goes_on_alone_where_no_thread_can_be_started():
    """A process of its own, without the memory for one."""
    done = subprocess.run([sys.executable, "-c", THREADLESS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
