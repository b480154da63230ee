"""What differs between two sets of numbers of one shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from .parameter import Parameter
from .tree import Parameters


@dataclass(frozen=True)
class TensorDiff:
    """One parameter, or one expert's part, of which some numbers differ.

    changed: how many of its `values`; norm: Euclidean norm of the difference; before, after: of the numbers
    largest: largest |difference|
    """

    name: str
    changed: int
    values: int
    norm: float
    largest: float
    before: float
    after: float

    @property
    def relative(self) -> float:
        """Norm of the difference, as a share of the norm before."""
        return self.norm / self.before if self.before else float("inf")


def diff_stores(
    before: Parameters, after: Parameters, names: Iterable[str] | None = None
) -> list[TensorDiff]:
    """All parameters that differ, experts' parts one by one; `names`: only these."""
    found = []
    for name in before if names is None else names:
        pairs = [(before[name], after[name])]
        if ".mlp.experts." in name:
            pairs = list(zip(before[name].experts, after[name].experts, strict=True))
        found += [diff for old, new in pairs if (diff := _compare(old, new)) is not None]
    return found


def _compare(old: Parameter, new: Parameter) -> TensorDiff | None:
    changed, squared, largest, before, after = 0, 0.0, 0.0, 0.0, 0.0
    for a, b in zip(old.values(), new.values(), strict=True):
        before += float(np.sum(np.square(a, dtype=np.float64)))
        after += float(np.sum(np.square(b, dtype=np.float64)))
        differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
        if differ.any():
            difference = b[differ].astype(np.float64) - a[differ]
            changed += int(np.count_nonzero(differ))
            squared += float(np.sum(difference**2))
            largest = max(largest, float(np.abs(difference).max()))
    if not changed:
        return None
    return TensorDiff(old.name, changed, old.size, sqrt(squared), largest, sqrt(before), sqrt(after))
