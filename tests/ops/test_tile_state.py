"""The emulated tile registers. Oracle: NumPy, after the pseudocode of Intel's manual, on random bytes."""

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.errors import GptossError

pytestmark = pytest.mark.skipif(not hasattr(_native, "amx"), reason="a build for tests (make build-simt)")
TILES, ROWS, ROW_BYTES = 8, 16, 64


def operand(rows, row_bytes, palette=1, start_row=0):
    """Of LDTILECFG: palette, start row, 14 reserved bytes, 16 x bytes of a row, 16 x rows."""
    found = np.zeros(64, np.uint8)
    found[0], found[1] = palette, start_row
    found[16:48].view(np.uint16)[: len(row_bytes)] = row_bytes
    found[48 : 48 + len(rows)] = rows
    return found.tobytes()


def random_bytes(rng, stride=ROW_BYTES):
    return rng.integers(0, 256, (ROWS, stride), dtype=np.uint8)


@pytest.fixture
def state():
    return _native.amx.TileState()


@pytest.fixture
def shapes(rng, state):
    """All eight tiles in use, of random rows and bytes."""
    rows, row_bytes = rng.integers(1, 17, TILES), rng.integers(1, 65, TILES)
    state.configure(operand(rows, row_bytes))
    return rows, row_bytes


def test_a_load_takes_its_rows_and_clears_the_others(rng, state, shapes):
    for tile in list(range(TILES)) * 2:
        rows, row_bytes = shapes[0][tile], shapes[1][tile]
        memory = random_bytes(rng, int(rng.integers(64, 200)))
        state.load(tile, memory)
        expected = np.zeros((ROWS, ROW_BYTES), np.uint8)
        expected[:rows, :row_bytes] = memory[:rows, :row_bytes]
        np.testing.assert_array_equal(state.bytes(tile), expected)


def test_a_store_writes_its_rows_and_nothing_else(rng, state, shapes):
    for tile in range(TILES):
        rows, row_bytes = shapes[0][tile], shapes[1][tile]
        memory = random_bytes(rng)
        state.load(tile, memory)
        to = random_bytes(rng, int(rng.integers(64, 200)))
        expected = to.copy()
        expected[:rows, :row_bytes] = memory[:rows, :row_bytes]
        state.store(tile, to)
        np.testing.assert_array_equal(to, expected)


def test_zero_and_configure_clear(rng, state, shapes):
    for tile in range(TILES):
        state.load(tile, random_bytes(rng))
    state.zero(3)
    assert [bool(state.bytes(tile).any()) for tile in range(TILES)] == [tile != 3 for tile in range(TILES)]
    state.configure(operand(*shapes))
    assert not any(state.bytes(tile).any() for tile in range(TILES))


def test_a_dot_product(rng, state):
    for _ in range(20):
        m, k, n = (int(rng.integers(1, 17)) for _ in range(3))
        total, a, b = (int(tile) for tile in rng.permutation(TILES)[:3])
        rows, row_bytes = np.zeros(TILES, int), np.zeros(TILES, int)
        rows[[total, a, b]], row_bytes[[total, a, b]] = [m, m, k], [4 * n, 4 * k, 4 * n]
        state.configure(operand(rows, row_bytes))
        left, right, start = random_bytes(rng), random_bytes(rng), random_bytes(rng)
        state.load(a, left)
        state.load(b, right)
        state.load(total, start)
        state.dot(total, a, b)
        x = left[:m, : 4 * k].view(np.int8).astype(np.int64)
        # Row j of b holds elements 4 j .. 4 j + 3 of every column, side by side.
        w = right[:k, : 4 * n].view(np.int8).reshape(k, n, 4).transpose(0, 2, 1).reshape(4 * k, n)
        expected = np.zeros((ROWS, ROW_BYTES // 4), np.int32)
        sums = start[:m, : 4 * n].view(np.int32) + x @ w.astype(np.int64)
        expected[:m, :n] = sums.astype(np.uint64).astype(np.uint32).view(np.int32)  # wraps around
        np.testing.assert_array_equal(state.bytes(total).view(np.int32), expected)


def test_an_interrupted_load_goes_on_where_it_was(rng, state):
    state.configure(operand([8], [32], start_row=3))
    memory = random_bytes(rng)
    state.load(0, memory)
    expected = np.zeros((ROWS, ROW_BYTES), np.uint8)
    expected[3:8, :32] = memory[3:8, :32]
    np.testing.assert_array_equal(state.bytes(0), expected)
    state.load(0, memory)
    assert (state.bytes(0)[:8, :32] == memory[:8, :32]).all(), "the start row is taken once"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (operand([8], [32], palette=2), "palette 2"),
        (operand([17], [32]), "tile 0 has 17 rows"),
        (operand([8], [65]), "rows of 65 bytes"),
        (operand([8, 0], [32, 4]), "tile 1 has 0 rows of 4 bytes"),
        (operand([8, 4], [32, 0]), "tile 1 has 4 rows of 0 bytes"),
        (operand([1] * 9, [4] * 9), "there is no tile 8"),
        (b"\1\0\1" + bytes(61), "a reserved byte is 1"),
    ],
)
def test_what_cannot_be_configured(state, given, message):
    with pytest.raises(GptossError, match=f"LDTILECFG: .*{message}"):
        state.configure(given)


@pytest.mark.parametrize("how", ["never", "released", "palette 0"])
def test_tiles_that_are_not_configured(rng, state, how):
    if how != "never":
        state.configure(operand([8] * 3, [32] * 3))
        state.release() if how == "released" else state.configure(bytes(64))
    for use in (
        lambda: state.zero(0),
        lambda: state.load(0, random_bytes(rng)),
        lambda: state.store(0, random_bytes(rng)),
        lambda: state.dot(0, 1, 2),
    ):
        with pytest.raises(GptossError, match="tiles are not configured"):
            use()


def test_one_tile_that_is_not_configured(rng, state):
    state.configure(operand([8] * 3, [32] * 3))
    with pytest.raises(GptossError, match="TILELOADD: tile 3 is not configured"):
        state.load(3, random_bytes(rng))
    with pytest.raises(GptossError, match="TILEZERO: there is no tile 8"):
        state.zero(8)


@pytest.mark.parametrize(
    ("rows", "row_bytes", "tiles", "message"),
    [
        ([8, 8, 8], [32, 32, 32], (0, 1, 1), "are not three"),
        ([8, 8, 8], [32, 32, 32], (0, 0, 1), "are not three"),
        ([8, 8, 8], [32, 30, 32], (0, 1, 2), "rows of 30 bytes"),
        ([8, 9, 8], [64, 32, 64], (0, 1, 2), "9 rows to 8"),
        ([8, 8, 8], [64, 32, 60], (0, 1, 2), "columns of 60 bytes to 64"),
        ([8, 8, 8], [64, 36, 64], (0, 1, 2), "rows of 36 bytes by 8 rows"),
    ],
)
def test_tiles_that_do_not_fit(state, rows, row_bytes, tiles, message):
    state.configure(operand(rows, row_bytes))
    with pytest.raises(GptossError, match=f"TDPBSSD: .*{message}"):
        state.dot(*tiles)
