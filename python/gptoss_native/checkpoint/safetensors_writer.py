"""Write safetensors files in a stream: the header first, then each tensor's bytes as they are produced."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .safetensors import DTYPE_BITS


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written; `chunks()` yields its bytes in order, as objects with a buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Any]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @staticmethod
    def from_array(name: str, array: np.ndarray) -> TensorSource:
        """BF16 given as uint16, or U8 given as uint8."""
        dtype = {np.dtype(np.uint16): "BF16", np.dtype(np.uint8): "U8"}[array.dtype]
        return TensorSource(name, dtype, array.shape, lambda: [np.ascontiguousarray(array)])


def header_bytes(tensors: Sequence[TensorSource], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and JSON header of a file that holds `tensors`, padded to a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    for tensor in tensors:
        span = [offset, offset + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(
    path: Path,
    tensors: Iterable[TensorSource],
    on_bytes: Callable[[int], None] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write one file atomically; returns its size in bytes.

    Tensors with wider elements come first, so that all are aligned. `on_bytes` is told each chunk's size.
    Raises CheckpointError when a source yields more or fewer bytes than its shape needs, or the disk is full.
    """
    ordered = sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensor.dtype])
    with atomic_file(path) as file:
        total = file.write(header_bytes(ordered, metadata))
        for tensor in ordered:
            written = 0
            for chunk in tensor.chunks():
                view = memoryview(chunk).cast("B")
                file.write(view)
                written += view.nbytes
                if on_bytes is not None:
                    on_bytes(view.nbytes)
            if written != tensor.nbytes:
                raise CheckpointError(
                    f"{path}: tensor {tensor.name} needs {tensor.nbytes:,} bytes for {tensor.dtype} "
                    f"{list(tensor.shape)}, "
                    f"its source gave {written:,}; pass an array of that shape"
                )
            total += written
    return total


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Any]:
    """Open a temporary file beside `path` and rename it there on success; on failure remove it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
