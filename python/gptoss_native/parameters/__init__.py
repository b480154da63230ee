"""The open numbers: read, edit, undo, compare and patch a model's parameters (docs/open-numbers.md)."""

from .diff import TensorDiff, diff_stores
from .edit import Edit
from .formats import WriteReport
from .history import Change
from .parameter import Parameter
from .tree import Expert, Layer, Parameters

__all__ = [
    "Change",
    "Edit",
    "Expert",
    "Layer",
    "Parameter",
    "Parameters",
    "TensorDiff",
    "WriteReport",
    "diff_stores",
]
