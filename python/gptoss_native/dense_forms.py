"""In which form the matrices of attention and lm_head are multiplied: what `dense_dtype` chooses from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .strict_json import show

DENSE_DTYPES: Mapping[str, str] = {
    "bf16": "as stored",
    "packed": "in 12 bits, without loss",
    "q8": "rounded to 8 bits",
}
#: Bytes of a number.
DENSE_BYTES: Mapping[str, float] = {"bf16": 2.0, "packed": 1.5, "q8": 34 / 32}
SCREEN_BYTES = 26 / 32  # where tokens are drawn, see screen_bytes

_PACKED_BLOCK, _PACKED_ROW, _MOST_PACKED_WIDTH = 128, 24, 4096  # csrc/cpu/packed_weights.h
_Q8_GROUP = 128  # csrc/cpu/q8_weights.h


def add_dense_dtype(parser: Any) -> None:
    """The flag --dense-dtype, for a parser or a group of one."""
    forms = "; ".join(f"{name}: {meaning}" for name, meaning in DENSE_DTYPES.items())
    parser.add_argument(
        "--dense-dtype",
        choices=tuple(DENSE_DTYPES),
        default="bf16",
        help=f"attention and lm_head: {forms}; the last two are faster, on a CPU; default: bf16",
    )


def check_dense_dtype(dense_dtype: Any, numerics: str, device: str) -> None:
    """Raise RequestError for what is no form of dense weights, or none for these numerics or this device."""
    if not isinstance(dense_dtype, str) or dense_dtype not in DENSE_DTYPES:
        raise RequestError(
            f"dense_dtype must be 'bf16', 'packed' or 'q8', found {show(dense_dtype)}; use 'bf16'"
        )
    if dense_dtype == "q8" and numerics == "exact":
        raise RequestError("dense_dtype is 'q8', which rounds, and numerics 'exact'; use 'packed', or 'fast'")
    if dense_dtype != "bf16" and device != "cpu":
        raise RequestError(
            f"dense_dtype is '{dense_dtype}', which {device} does not offer; use 'bf16', or device='cpu'"
        )


def has_copy(dense_dtype: str, width: int) -> bool:
    """Whether a matrix with rows of this width has a copy in another form."""
    if dense_dtype == "packed":
        return width % (_PACKED_BLOCK // 2) == 0 and width <= _MOST_PACKED_WIDTH
    return dense_dtype == "q8"


def screen_bytes(vocab: int, hidden: int) -> int:
    """Bytes of lm_head in 6 bits, with which a CPU draws tokens from few logits (csrc/cpu/screen.h).

    A token drawn so reads it instead of lm_head.
    """
    return vocab * (-(-hidden // _Q8_GROUP) * (_Q8_GROUP * 6 // 8 + 4 * 2) + 8)


def matrix_bytes(dense_dtype: str, rows: int, width: int) -> int:
    """Bytes of a matrix in the form that a decoded token reads."""
    if not has_copy(dense_dtype, width):
        return 2 * rows * width
    if dense_dtype == "q8":  # signed bytes and a bf16 scale for each 32, in groups
        return rows * -(-width // _Q8_GROUP) * (_Q8_GROUP + 4 * 2)
    blocks, half = divmod(width, _PACKED_BLOCK)
    return rows * (blocks * _PACKED_BLOCK * 3 // 2 + (_PACKED_BLOCK if half else 0) + _PACKED_ROW)
