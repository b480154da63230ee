"""Upper bounds of logits from six bits a number (csrc/cpu/screen_weights.h).

Oracles: logits in float64, which no bound may be below; the six bits in NumPy.
"""

from __future__ import annotations

import numpy as np
import pytest
from gptoss_native import _native

from tests.compare import assert_same_bits
from tests.ops.inputs import bf16, empty, multiple, norm_weight, normal
from tests.reference.formats import bf16_to_float, bf16_to_q8, float_to_bf16, to_six_bits

EPS = 1e-5


def backend_of(isa, dense_dtype="packed"):
    return _native.Backend(device="cpu", threads=2, isa=isa, dense_dtype=dense_dtype)


def unembed(backend, residual, norm, lm_head, screen):
    logits = empty(len(residual), len(lm_head))
    rows = np.arange(len(residual), dtype=np.int32)
    backend.unembed(residual, rows, norm, EPS, lm_head, logits, screen=screen)
    return logits


def matrices(rng, vocab, hidden):
    """Kinds of rows: as usual, of any size, with outliers, with zeros, with numbers of any exponent, tiny."""
    yield "usual", bf16(rng, vocab, hidden)
    sizes = (10 ** rng.uniform(-8, 8, (vocab, 1))).astype(np.float32)
    yield "of any size", float_to_bf16(bf16_to_float(bf16(rng, vocab, hidden)) * sizes)
    heavy = normal(rng, vocab, hidden) / np.abs(normal(rng, vocab, hidden) + 1e-3)
    yield "with outliers", float_to_bf16(heavy.astype(np.float32))
    sparse = bf16(rng, vocab, hidden)
    sparse[rng.random(sparse.shape) < 0.9] = 0
    yield "with zeros", sparse
    yield "of any exponent", rng.integers(0x1000, 0x5000, (vocab, hidden)).astype(np.uint16)
    yield "tiny", rng.integers(0, 0x0D00, (vocab, hidden)).astype(np.uint16)
    yield "whose squares are lost", bf16(rng, vocab, hidden, scale=float(10 ** rng.uniform(-30, -18)))
    yield "whose squares overflow", bf16(rng, vocab, hidden, scale=float(10 ** rng.uniform(15, 25)))


@pytest.mark.parametrize("dtype", ["packed", "q8"])
def test_no_logit_is_above_its_bound(isa, rng, dtype):
    """In 8 bits the logits are what those make of them."""
    backend = backend_of(isa, dtype)
    for rows, hidden in ((1, 2880), (3, 64), (int(rng.integers(2, 9)), multiple(rng, 32, 40))):
        vocab = int(rng.integers(100, 400))
        for kind, lm_head in matrices(rng, vocab, hidden):
            residual = normal(rng, rows, hidden) * (10 ** rng.normal(0, 1, (rows, hidden))).astype(np.float32)
            norm = norm_weight(rng, hidden)
            exact = unembed(backend, residual, norm, lm_head, screen=False)
            bound = unembed(backend, residual, norm, lm_head, screen=True)
            where = f"{kind} rows, {rows} x {hidden} x {vocab}"
            assert not (bound < exact).any(), where
            wide = residual.astype(np.float64)
            wide *= bf16_to_float(norm) / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS)
            weight = bf16_to_float(lm_head).astype(np.float64)
            below = bound < wide @ weight.T - 1e-6 * np.abs(wide) @ np.abs(weight).T
            assert dtype == "q8" or not below.any(), where
            # 6 bits lose up to 1/62 of a block's largest number, and 8 bits 1/254; 32 may lose that much.
            sizes = np.linalg.norm(wide, axis=1)[:, None] * np.linalg.norm(weight, axis=1)
            near = bound - exact <= 0.1 * sizes + 1e-14 * np.linalg.norm(wide, axis=1)[:, None]
            assert near.all() or "overflow" in kind, f"{where}: bounds are too far away to help"


@pytest.mark.parametrize("tiles", _native.emulated_isas())
def test_bounds_are_the_same_where_rows_are_laid_out_for_tiles(tiles, rng):
    """AMX lays out rows for itself, and leaves these products to AVX-512."""
    lm_head, norm, residual = bf16(rng, 300, 352), norm_weight(rng, 352), normal(rng, 19, 352)
    found = [unembed(backend_of(each), residual, norm, lm_head, screen=True) for each in (tiles, "avx512")]
    assert_same_bits(found[0], found[1], "bounds")


@pytest.mark.parametrize("dtype", ["packed", "q8"])
def test_bounds_are_of_these_six_bits(isa, rng, dtype):
    """One input that is not zero shows what its weights were rounded to, and how much is added for a row."""
    backend = backend_of(isa, dtype)
    for width in (32, 96, 160, 288, 544):
        weight = normal(rng, 5, width)
        weight[1, ::7] *= 30
        weight[2, :32] = 0
        lm_head = float_to_bf16(weight)
        stored = bf16_to_float(lm_head) if dtype == "packed" else bf16_to_q8(lm_head)
        rounded = to_six_bits(stored)
        lost = np.linalg.norm(stored - rounded, axis=1)
        for rows in (1, 2, width):
            residual, each = 100 * np.eye(width, dtype=np.float32)[:rows], np.arange(rows, dtype=np.int32)
            bound = empty(rows, 5)
            ones = float_to_bf16(np.ones(width, np.float32))
            backend.unembed(residual, each, ones, 0.0, lm_head, bound, screen=True)
            added = bound.T / np.sqrt(width) - rounded[:, :rows]  # the norm makes each input sqrt(width)
            where = f"{rows} rows of {width}"
            near = 1e-5 * np.abs(weight).max()
            assert (np.ptp(added, axis=1) < near).all(), where
            assert (added.min(axis=1) >= lost - near).all(), where
            most = 1.01 * lost + 1e-3 * np.abs(weight).max() * np.sqrt(width)
            assert (added.max(axis=1) <= most).all(), where


@pytest.mark.parametrize("side", ["weights", "inputs"])
def test_errors_that_all_point_one_way(isa, side):
    """One side is the same in all places, and the other loses half a step in each of them, upwards."""
    backend, width = backend_of(isa), 640
    halves = np.full(width, 17 if side == "weights" else 64.5, np.float32)
    if side == "weights":  # 42 plus 128 has the bits 101010, so that every other number must end in 10
        halves.reshape(-1, 16)[:, 9::2] = 10.5
    halves[::32] = 31 if side == "weights" else 127  # of each block, so that a step is 1
    same, norm = np.ones(width, np.float32), float_to_bf16(np.ones(width, np.float32))
    residual, lm_head = (same, halves) if side == "weights" else (halves, same)
    residual, lm_head = residual[None], float_to_bf16(lm_head)[None]
    exact = unembed(backend, residual, norm, lm_head, screen=False)
    bound = unembed(backend, residual, norm, lm_head, screen=True)
    assert exact <= bound <= exact * 1.06, (exact, bound)


@pytest.mark.parametrize("dtype", ["packed", "q8"])
def test_copies_larger_than_a_buffer(isa, rng, dtype):
    """They share buffers of 4 MB and more (csrc/model/device.h); these fill several."""
    lm_head, norm, residual = bf16(rng, 20_000, 1024), norm_weight(rng, 1024), normal(rng, 1, 1024)
    backend = backend_of(isa, dtype)
    exact = unembed(backend, residual, norm, lm_head, screen=False)
    assert not (unembed(backend, residual, norm, lm_head, screen=True) < exact).any()
    if dtype == "packed":
        stored = unembed(backend_of(isa, "bf16"), residual, norm, lm_head, screen=False)
        assert_same_bits(exact, stored, "logits of packed weights")


def test_numbers_that_are_none_leave_no_bound(isa, rng):
    backend = backend_of(isa)
    lm_head, norm, residual = bf16(rng, 90, 128), norm_weight(rng, 128), normal(rng, 3, 128)
    lm_head[7, 100], lm_head[9, 0] = 0x7FC0, 0xFF80
    residual[1, 5] = np.nan
    bound = unembed(backend, residual, norm, lm_head, screen=True)
    expected = np.ones(bound.shape, bool)
    expected[1], expected[:, [7, 9]] = False, False
    assert (np.isfinite(bound) == expected).all()
