"""Products of many 8-bit rows by tiles (AMX), emulated where the host has none.

Oracles: the table avx512, bit for bit, whose sums they promise; and float64 products of the same bytes. Three
tables are put to it: the kernels' source over emulated registers ("amx-emulated"), the machine code of "amx"
whose instructions trap and are emulated ("amx-trapped"), and "amx" itself on a host that has it.
"""

import threading

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.errors import GptossError

from tests.compare import assert_close, assert_same_bits
from tests.ops.inputs import bf16, multiple, mxfp4
from tests.reference.formats import BLOCK, bf16_to_q8, mxfp4_to_float, q8_to_float

TABLES = [*_native.emulated_isas(), *(name for name in _native.cpu_isas() if name == "amx")]
pytestmark = pytest.mark.skipif(
    not hasattr(_native, "amx") or not TABLES,
    reason="a build for tests (make build-simt), a host with AVX-512",
)
POISON = np.float32(-7.25e30)


@pytest.fixture(params=TABLES)
def table(request):
    return request.param


class Product:
    """Random 8-bit rows and weights of one kind; `index` takes every row some times, in no order."""

    def __init__(self, rng, kind, rows, columns, width, indexed):
        self.kind, self.columns, self.divisor = kind, columns, 1
        stored = rows
        self.index = None
        if indexed:
            stored, self.divisor = int(rng.integers(1, rows + 1)), int(rng.integers(1, 5))
            self.index = rng.integers(0, stored * self.divisor, rows).astype(np.int32)
        self.q8 = rng.integers(-127, 128, (stored, width)).astype(np.int8)
        self.scale = rng.lognormal(-5, 1, (stored, width // BLOCK)).astype(np.float32)
        self.scale[rng.random(self.scale.shape) < 0.02] = 0
        if kind == "mxfp4":
            blocks, scales, _ = mxfp4(rng, 1, columns, width)
            self.weights = blocks[0], scales[0]
        else:
            self.weights = (bf16(rng, columns, width, scale=width**-0.5),)
        # Room beside and behind what is asked for, which must stay as it is.
        self.out = np.full((rows + 2, columns + int(rng.integers(0, 40))), POISON, np.float32)
        self.rows = rows

    def by(self, isa, rows=None):
        """Of all rows, or of a slice of them."""
        rows = rows or slice(0, self.rows)
        index = np.arange(self.rows, dtype=np.int32) if self.index is None else self.index
        q8, scale = self.q8, self.scale
        if self.index is None:
            q8, scale, index = np.ascontiguousarray(q8[rows]), np.ascontiguousarray(scale[rows]), None
        else:
            index = np.ascontiguousarray(index[rows])
        out = self.out.copy()
        if self.kind == "mxfp4":
            _native.amx.matmul_mxfp4_q8(isa, q8, scale, index, self.divisor, *self.weights, self.columns, out)
        else:
            _native.amx.matmul_q8(isa, q8, scale, index, self.divisor, *self.weights, out)
        assert not _native.amx.is_configured(), "tiles are left configured"
        count = rows.stop - rows.start
        assert (out[count:] == POISON).all(), f"{isa} writes below"
        assert (out[:, self.columns :] == POISON).all(), f"{isa} writes beside"
        return out[:count, : self.columns].copy()

    def expected(self):
        rows = q8_to_float(self.q8, self.scale)
        if self.index is not None:
            rows = rows[self.index // self.divisor]
        if self.kind == "mxfp4":
            blocks, scales = self.weights
            # 2**-127 is a denormal of float32, which the CPU's kernels take for 0.
            weights = np.where(np.repeat(scales == 0, BLOCK, axis=-1), 0, mxfp4_to_float(blocks, scales))
        else:
            weights = bf16_to_q8(self.weights[0])
        return rows @ weights.T


def check(rng, table, kind, rows, columns, width, indexed):
    product = Product(rng, kind, rows, columns, width, indexed)
    what = f"{kind}, {rows} rows, {columns} columns, width {width}, indexed {indexed}"
    found = product.by(table)
    assert_same_bits(found, product.by("avx512"), what)
    assert_close(found, product.expected(), 3e-6, what)


@pytest.mark.parametrize("kind", ["mxfp4", "q8"])
def test_every_number_of_rows(rng, table, kind):
    """From one, by avx512's own path, to nine groups of eight."""
    columns, width = int(rng.integers(1, 70)), multiple(rng, BLOCK, 40)
    for rows in range(1, 71):
        check(rng, table, kind, rows, columns, width, bool(rng.integers(2)))


@pytest.mark.parametrize("kind", ["mxfp4", "q8"])
def test_every_number_of_blocks(rng, table, kind):
    """Steps of 16 blocks that end anywhere, lanes that no block falls to among them."""
    for blocks in range(1, 50):
        rows, columns = int(rng.integers(8, 30)), int(rng.integers(1, 40))
        check(rng, table, kind, rows, columns, BLOCK * blocks, bool(rng.integers(2)))


@pytest.mark.parametrize("kind", ["mxfp4", "q8"])
def test_every_number_of_columns(rng, table, kind):
    width = multiple(rng, BLOCK, 20)
    for columns in range(1, 70):
        check(rng, table, kind, int(rng.integers(8, 30)), columns, width, bool(rng.integers(2)))


@pytest.mark.parametrize("kind", ["mxfp4", "q8"])
@pytest.mark.parametrize("indexed", [False, True])
def test_more_rows_than_stay_in_the_cache(rng, table, kind, indexed):
    """Above 128 the weights are unpacked again."""
    for rows in (128, 129, 136, int(rng.integers(137, 300))):
        check(rng, table, kind, rows, int(rng.integers(1, 50)), multiple(rng, BLOCK, 6), indexed)


@pytest.mark.parametrize(("kind", "width"), [("mxfp4", 2880), ("q8", 2880), ("q8", 4096)])
def test_the_widths_of_the_released_models(rng, table, kind, width):
    check(rng, table, kind, int(rng.integers(8, 40)), 64, width, True)


@pytest.mark.parametrize("kind", ["mxfp4", "q8"])
def test_a_row_does_not_depend_on_its_neighbours(rng, table, kind):
    product = Product(rng, kind, 61, 37, 1184, bool(rng.integers(2)))
    together = product.by(table)
    for count in (1, 2, 3, 7, 8, 9, 16, 23, 40):
        first = int(rng.integers(0, 61 - count + 1))
        rows = slice(first, first + count)
        assert_same_bits(product.by(table, rows), together[rows], f"rows {first} to {first + count} of 61")


@pytest.mark.parametrize("kind", ["mxfp4", "q8"])
def test_the_largest_sums_are_exact(rng, table, kind):
    """Bytes of +-127 against the largest weights."""
    product = Product(rng, kind, 9, 33, 320, False)
    product.q8[:] = rng.choice(np.int8([-127, 127]), product.q8.shape)
    product.q8[1], product.q8[2] = 127, -127
    if kind == "mxfp4":
        codes = rng.choice(np.uint8([0x77, 0x7F, 0xF7, 0xFF]), product.weights[0].shape)
        codes[0], codes[1] = 0x77, 0xFF
        product.weights = codes, product.weights[1]
    else:
        product.weights[0][:] = rng.choice(np.uint16([0x3F80, 0xBF80]), product.weights[0].shape)
        product.weights[0][0], product.weights[0][1] = 0x3F80, 0xBF80
    assert_same_bits(product.by(table), product.by("avx512"), kind)
    assert_close(product.by(table), product.expected(), 1e-6, kind)


@pytest.mark.parametrize("kind", ["mxfp4", "q8"])
def test_every_exponent(rng, table, kind):
    """Scales from where products vanish to where they overflow: infinities and NaN in the same places."""
    product = Product(rng, kind, 20, 40, 672, False)
    product.scale[:] = np.exp2(rng.uniform(-140, 126, product.scale.shape))
    product.scale[int(rng.integers(20)), int(rng.integers(21))] = np.nan
    if kind == "mxfp4":
        product.weights = product.weights[0], rng.integers(0, 256, product.weights[1].shape, dtype=np.uint8)
    found, expected = product.by(table), product.by("avx512")
    nan = np.isnan(expected)
    assert nan.any()
    assert (np.isnan(found) == nan).all()
    assert_same_bits(np.where(nan, 0, found), np.where(nan, 0, expected), kind)


def test_threads_have_tiles_of_their_own(rng, table):
    products = [Product(rng, "mxfp4", 24, 40, 480, True) for _ in range(4)]
    expected = [product.by("avx512") for product in products]
    found = [None] * 4

    def run(i):
        for _ in range(5):
            found[i] = products[i].by(table)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert_same_bits(found[i], expected[i], f"thread {i}")


def test_the_self_check_passes(table):
    assert _native.amx.same_products(table, "avx512")


def test_the_self_check_sees_other_sums():
    """avx2 adds the same products in another order."""
    assert not _native.amx.same_products("avx2", "avx512")


@pytest.mark.skipif("amx-trapped" not in TABLES or "amx" in TABLES, reason="needs a host without AMX")
def test_the_real_instructions_are_met(rng):
    before = _native.amx.trapped_instructions()
    Product(rng, "q8", 7, 32, 64, False).by("amx-trapped")
    assert _native.amx.trapped_instructions() == before, "seven rows are avx512's"
    Product(rng, "q8", 8, 32, 64, False).by("amx-trapped")
    # Configure and release; for each of two blocks three loads, two zeros, two products, two stores.
    assert _native.amx.trapped_instructions() == before + 2 + 2 * 9


def test_emulated_tables_are_had_by_name_alone():
    assert not set(_native.emulated_isas()) & set(_native.cpu_isas())
    assert _native.Backend("cpu", threads=1).isa in _native.cpu_isas()
    assert _native.Backend("cpu", threads=1, isa="amx-emulated").isa == "amx-emulated"
    with pytest.raises(GptossError) as found:
        _native.Backend("cpu", threads=1, isa="mmx")
    assert "emulated" not in str(found.value)


@pytest.mark.skipif("amx" in TABLES, reason="needs a host without AMX")
def test_why_there_is_no_amx():
    with pytest.raises(GptossError, match=r"'amx' is not available; .*avx512; the processor has no AMX-INT8"):
        _native.Backend("cpu", threads=1, isa="amx")
