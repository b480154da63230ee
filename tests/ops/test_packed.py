"""Dense ops with weights in 12 bits (dense_dtype="packed").

Oracles: the same op with the weights as stored, of which no bit of a number may differ; an unpacker and a
count of upper bytes in NumPy.
"""

from functools import cache

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.dense_forms import matrix_bytes

from tests.compare import assert_same_bits
from tests.ops.inputs import bf16, empty, linear, multiple, norm_weight, normal
from tests.ops.test_attention_in import Layer, paged_batch, random_sequences
from tests.reference.formats import packed_to_bf16

# Tables with tiles are avx512's otherwise.
LANES = {"portable": 8, "avx2": 8, "avx512": 16, "amx": 16, "amx-emulated": 16}
STORED = np.uint64(0xFFFFFFFFFFFFFFFF)  # the marks of a row that is read as stored


@cache
def backends_of(isa):
    """(weights as stored, packed)"""
    return tuple(
        _native.Backend(device="cpu", threads=2, isa=isa, dense_dtype=dtype) for dtype in ("bf16", "packed")
    )


@pytest.fixture
def backends(isa):
    return backends_of(isa)


def upper_bytes(bits):
    """Without the sign."""
    return bits >> 8 & 127


def marks_of(bits, first):
    """bool [rows, halves]: whether any of 64 numbers has an upper byte outside of first to first + 7."""
    outside = (upper_bytes(bits) < first) | (upper_bytes(bits) > first + 7)
    return np.add.reduceat(outside, np.arange(0, bits.shape[1], 64), axis=1, dtype=int) > 0


def least_outside(bits):
    """How many numbers the best window of eight upper bytes leaves out."""
    count = np.bincount(upper_bytes(bits).ravel(), minlength=128)
    return bits.size - max(count[at : at + 8].sum() for at in range(121))


def unusual(rng, bits, share=2e-4):
    """The same with a few numbers of any exponent: zeros, denormals, tiny and huge ones."""
    some = rng.random(bits.shape) < share
    some.flat[rng.integers(some.size)] = True
    found = bits.copy()
    found[some] = rng.integers(0, 0x6000, some.sum(), dtype=np.uint16) | rng.choice([0, 0x8000], some.sum())
    found[some & (rng.random(bits.shape) < 0.3)] = 0
    return found


def shapes(rng):
    yield 1, 96, 64
    yield 2, 130, 128
    yield 7, 2880, 192
    for rows in (1, 3, int(rng.integers(4, 33)), int(rng.integers(33, 131))):
        yield rows, multiple(rng, 32, 12), multiple(rng, 64, 17)


def test_every_number_is_kept(isa, rng):
    for rows, width in ((1, 64), (300, 2880), (64, 4096), (40, multiple(rng, 64, 20))):
        weight = bf16(rng, rows, width, scale=float(10 ** rng.uniform(-6, 6)))
        if weight.size > 10_000:
            weight = unusual(rng, weight, 1e-5)
        made = _native.pack_bf16(weight, isa)
        if made is None:  # one tiny number of 64 is already too many
            assert least_outside(weight) > weight.size / 1000, f"{rows} x {width} is not packed"
            continue
        first, packed, marks, upper = made
        assert packed.nbytes + marks.nbytes + upper.nbytes == matrix_bytes("packed", rows, width)
        stored = marks == STORED
        marked = (marks[:, None] >> np.arange(width // 64, dtype=np.uint64) & np.uint64(1)).astype(bool)
        expected = marks_of(weight, first)
        assert (marked == expected)[~stored].all(), f"marks of {rows} x {width}"
        for row in range(rows):
            used = np.unique(weight[row, np.repeat(expected[row], 64)] >> 8)
            assert stored[row] == (len(used) > 16 or (width == 4096 and expected[row].all())), (
                f"row {row} has {len(used)} upper bytes in marked halves"
            )
        found = packed_to_bf16(packed, first, marks, upper, width, LANES[isa])
        assert (found == weight)[~stored].all(), f"numbers of {rows} x {width}"
        assert stored.mean() < 0.2, "most rows of such a matrix are packed"


def test_the_first_upper_byte_leaves_the_fewest_out(rng):
    for _ in range(20):
        scale = float(10 ** rng.uniform(-9, 9))
        weight = bf16(rng, 40, 640, scale=scale)
        weight[rng.random(weight.shape) < 1e-4] = 0
        first, *_ = _native.pack_bf16(weight)
        outside = (upper_bytes(weight) < first) | (upper_bytes(weight) > first + 7)
        assert outside.sum() == least_outside(weight), f"numbers of size {scale:g}"


@pytest.mark.parametrize("bits", [0, 0x7FC0, 0x7F80, 0x0001, 0xFFFF, 0x7F7F], ids=hex)
def test_the_ends_of_the_exponents(isa, rng, bits):
    """Windows at either end: zeros and denormals, NaN and infinities are numbers like all others."""
    weight = np.full((5, 192), bits, np.uint16)
    first, packed, marks, upper = _native.pack_bf16(weight, isa)
    assert 0 <= first <= 120
    assert not marks.any()
    assert (packed_to_bf16(packed, first, marks, upper, 192, LANES[isa]) == weight).all()


def test_what_does_not_pack_stays_as_it_is(rng):
    spread = bf16(rng, 64, 128)
    spread[rng.random(spread.shape) < 0.01] = 0
    assert _native.pack_bf16(spread) is None, "too many zeros"
    assert _native.pack_bf16(bf16(rng, 8, 96)) is None, "no whole half blocks"
    assert _native.pack_bf16(bf16(rng, 8, 4160)) is None, "more halves than a row has marks"


def test_attention_out(backends, rng):
    stored, packed = backends
    for rows, hidden, width in shapes(rng):
        weight, bias = linear(rng, hidden, width)
        assert _native.pack_bf16(weight) is not None
        for matrix in (weight, unusual(rng, weight)):
            attended, residual = normal(rng, rows, width, scale=3), normal(rng, rows, hidden, scale=10)
            expected = residual.copy()
            stored.attention_out(attended, matrix, bias, expected)
            packed.attention_out(attended, matrix, bias, residual)
            assert_same_bits(residual, expected, f"rows {rows}, hidden {hidden}, width {width}")


def test_a_row_of_many_exponents_is_read_as_stored(backends, rng):
    stored, packed = backends
    for rows in (1, 2, 4):
        weight, bias = linear(rng, 50, 2880)
        odd, at = int(rng.integers(50)), 64 * int(rng.integers(45))
        weight[odd, at : at + 64] = (np.arange(64) + 30) << 8 | rng.integers(0, 256, 64)
        _, _, marks, _ = _native.pack_bf16(weight, stored.isa)
        assert np.flatnonzero(marks == STORED).tolist() == [odd]
        attended, residual = normal(rng, rows, 2880), normal(rng, rows, 50)
        expected = residual.copy()
        stored.attention_out(attended, weight, bias, expected)
        packed.attention_out(attended, weight, bias, residual)
        assert_same_bits(residual, expected, f"rows {rows}, row {odd} as stored")


def test_unembed(backends, rng):
    for rows, vocab, hidden in shapes(rng):
        norm, residual = norm_weight(rng, hidden), normal(rng, rows, hidden)
        lm_head = unusual(rng, bf16(rng, vocab, hidden))
        found = [empty(rows, vocab) for _ in backends]
        for backend, logits in zip(backends, found, strict=True):
            backend.unembed(residual, np.arange(rows, dtype=np.int32), norm, 1e-5, lm_head, logits)
        assert_same_bits(found[1], found[0], f"rows {rows}, hidden {hidden}, vocab {vocab}")


def test_attention_in(backends, rng):
    hidden = multiple(rng, 64, 9)
    layer = Layer(rng, hidden, 4, 2)
    batch = paged_batch(rng, random_sequences(rng, int(rng.integers(2, 40)), 90), 2, 16, np.float32)
    residual = normal(rng, int(batch.row_start[-1]), hidden)
    expected, found = (layer.native(backend, residual, batch) for backend in backends)
    assert_same_bits(found, expected, f"queries, hidden {hidden}")


def test_nan_stays_where_it_is(backends, rng):
    """Of weights and inputs, in marked blocks too."""
    _, packed = backends
    weight, bias = linear(rng, 96, 192)
    weight[5, 40], weight[7, 130] = 0x7FC0, 0x7F80
    attended, residual = normal(rng, 9, 192), normal(rng, 9, 96)
    attended[4, 63] = np.nan
    packed.attention_out(attended, weight, bias, residual)
    expected = np.zeros((9, 96), bool)
    expected[4], expected[:, 5] = True, True
    assert (np.isnan(residual) == expected).all()
    assert np.isinf(residual[[0, 1, 2, 3, 5, 6, 7, 8], 7]).all()
