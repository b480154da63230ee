"""Rows of a checkpoint's tensors, wherever they are: in a loaded model, in files, or not yet applied.

A store speaks bytes in the checkpoint's form. A tensor is rows: those of a matrix, those of all experts'
matrices one after the other, or single numbers. `[rows, bytes of a row]`, uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from ..checkpoint.tensor_names import TensorSpec, expected_tensors
from ..config import ModelConfig
from ..errors import RequestError


class Store(Protocol):
    """Where rows are read, and written if they may be."""

    def read(self, name: str, first: int, count: int) -> np.ndarray:
        """uint8 [count, bytes of a row]; nobody else's memory."""

    def read_all(self, names: Sequence[str], first: int, count: int) -> list[np.ndarray]:
        """The same rows of several tensors, such as codes and scales, as they are at one moment."""

    def write(self, name: str, first: int, rows: np.ndarray, now: np.ndarray | None = None) -> None:
        """Overwrite rows from `first` on. now: what they are, where the caller has just read them."""

    def transaction(self) -> AbstractContextManager[Store]:
        """A store whose writes take effect together."""


def rows_of(spec: TensorSpec) -> tuple[int, int]:
    """Rows of a tensor, and bytes of each."""
    if spec.name.endswith("_blocks"):
        return prod(spec.shape[:2]), prod(spec.shape[2:])
    if spec.name.endswith("_scales") or (len(spec.shape) == 2 and not spec.name.endswith("_bias")):
        return prod(spec.shape[:-1]), spec.shape[-1] * (1 if spec.dtype == "U8" else 2)
    return prod(spec.shape), 2


def specs_of(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of a model by its checkpoint name."""
    return {spec.name: spec for spec in expected_tensors(config)}


class _Reads:
    """Reads several tensors one by one: for stores that nobody writes meanwhile."""

    def read_all(self: Any, names: Sequence[str], first: int, count: int) -> list[np.ndarray]:
        """See Store."""
        return [self.read(name, first, count) for name in names]


class ModelStore(_Reads):
    """The numbers of a loaded model, as its device has them."""

    def __init__(self, model: Any):
        self.model = model

    def read(self, name: str, first: int, count: int) -> np.ndarray:
        """See Store."""
        return self.model.read_rows(name, first, count)

    def write(self, name: str, first: int, rows: np.ndarray, now: np.ndarray | None = None) -> None:
        """See Store. At once, between two steps."""
        self.model.write_rows(name, first, np.ascontiguousarray(rows))

    def transaction(self) -> AbstractContextManager[Store]:
        """No transaction: for undo, redo and apply themselves."""
        return nullcontext(self)


class FileStore(_Reads):
    """The numbers of an opened checkpoint; they cannot be written."""

    def __init__(self, arrays: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec]):
        self._rows = {
            name: array.view(np.uint8).reshape(rows_of(specs[name])) if array.flags.c_contiguous else array
            for name, array in arrays.items()
        }

    def read(self, name: str, first: int, count: int) -> np.ndarray:
        """See Store."""
        return self._rows[name][first : first + count].copy()

    def write(self, name: str, first: int, rows: np.ndarray, now: np.ndarray | None = None) -> None:
        """Never called: files are edited by an Overlay and written by an export."""
        raise AssertionError("a checkpoint's files are not written in place")

    def transaction(self) -> AbstractContextManager[Store]:
        """See write."""
        return nullcontext(self)


@dataclass
class Region:
    """Rows of a tensor and what they are to become; once that has happened, what they were."""

    name: str
    first: int
    rows: np.ndarray

    @property
    def end(self) -> int:
        return self.first + len(self.rows)


class Overlay:
    """A store with changes on top that it keeps to itself."""

    def __init__(self, below: Store, regions: list[Region] | None = None):
        self._below, self._closed = below, False
        self.regions: list[Region] = regions if regions is not None else []

    def read(self, name: str, first: int, count: int) -> np.ndarray:
        """See Store; the latest change of a row counts."""
        return self.read_all([name], first, count)[0]

    def read_all(self, names: Sequence[str], first: int, count: int) -> list[np.ndarray]:
        """See Store."""
        found = self._below.read_all(names, first, count)
        return [self._changed(name, first, rows) for name, rows in zip(names, found, strict=True)]

    def close(self) -> None:
        """Take no more changes, and give up those that there are."""
        self._closed, self.regions = True, []

    def _changed(self, name: str, first: int, rows: np.ndarray) -> np.ndarray:
        count = len(rows)
        for region in self.regions:
            low, high = max(first, region.first), min(first + count, region.end)
            if region.name == name and low < high:
                rows[low - first : high - first] = region.rows[low - region.first : high - region.first]
        return rows

    def write(self, name: str, first: int, rows: np.ndarray, now: np.ndarray | None = None) -> None:
        """See Store; rows that stay as they are, at both ends, are left out. RequestError once closed."""
        if self._closed:
            raise RequestError(
                f"{name} is of an edit that has ended, where nothing can be written any more; take it from "
                "llm.parameters, or from an edit that is open"
            )
        if now is None:
            now = self.read(name, first, len(rows))
        changed = np.flatnonzero((now != rows).any(axis=1))
        if len(changed):
            low, high = int(changed[0]), int(changed[-1]) + 1
            self.regions.append(Region(name, first + low, np.array(rows[low:high])))

    @contextmanager
    def transaction(self) -> Iterator[Store]:
        """Itself; what was written in the block is taken back when that raises."""
        kept = len(self.regions)
        try:
            yield self
        except BaseException:
            del self.regions[kept:]
            raise
