"""What users pass, NumPy's numbers and paths of any kind included, as the package wants it."""

from __future__ import annotations

import operator
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError, RequestError
from .strict_json import show


def whole(value: Any) -> int | None:
    """A whole number as an int; None for anything else, truth values included."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_path(value: Any) -> Path:
    """A Path. Raises RequestError for what is none."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value) or not str(value):
        raise RequestError(f"a path must be a text or a Path, found {show(value)}; pass one")
    return Path(value)


def new_file(value: Any) -> Path:
    """A path at which a file may be written: nothing is there, or a regular file, which is replaced.

    Raises RequestError for what is no path, CheckpointError for a folder, a link, a device.
    """
    path = as_path(value)
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing is there, or the writing will say why not
        return path
    if not stat.S_ISREG(mode):
        kind = next((name for name, test in _KINDS if test(mode)), "device")
        raise CheckpointError(
            f"{path}: is a {kind}, expected a new file or a regular one; choose another path"
        )
    return path


_KINDS = (
    ("folder", stat.S_ISDIR),
    ("link", stat.S_ISLNK),
    ("pipe", stat.S_ISFIFO),
    ("socket", stat.S_ISSOCK),
)
