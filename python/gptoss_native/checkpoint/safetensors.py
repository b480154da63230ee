"""A strict, memory-mapped reader of safetensors files.

The format: header length (u64, little endian), a JSON header (name -> dtype, shape, data_offsets), then
the tensors' bytes without gaps. Source: the format description in the README of huggingface/safetensors.
Everything in the file is hostile until checked: nothing is allocated from a number in it.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..strict_json import open_regular, parse_object, show

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
MAX_RANK = 16
MAX_NAME_LENGTH = 1_024

#: Bits per element. The sub-byte types exist in the format; gpt-oss stores its FP4 as plain U8.
DTYPE_BITS: dict[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
#: How an array of each dtype that checkpoints may hold is viewed in NumPy, which has no bfloat16.
NUMPY_DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header; `begin` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile:
    """One open, validated and mapped file. The mapping lives as long as any array that views it."""

    def __init__(self, path: Path):
        """Open `path`; raises CheckpointError naming the file, the tensor and both values."""
        self.path = Path(path)
        descriptor, status = open_regular(self.path)
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        weakref.finalize(self, self._file.close)  # open as long as there is something to check
        self._identity = (status.st_size, status.st_mtime_ns)
        self.nbytes = status.st_size
        try:
            header = self._read_header()
            self.tensors = parse_header(header, self.nbytes - 8 - len(header), str(self.path))
            self.metadata: dict[str, str] = parse_object(header, str(self.path)).get("__metadata__", {})
            # Private: numbers that somebody edits are this process's own, the file stays as it is.
            self._map = mmap.mmap(
                self._file.fileno(), self.nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ
            )
            self._bytes = np.frombuffer(self._map, dtype=np.uint8)
            self.wants_huge_pages = self._advise("MADV_HUGEPAGE")
        except (OSError, ValueError) as error:
            self._file.close()
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.path}: cannot be mapped ({error}); check the disk and the memory limit"
            ) from None

    def _read_header(self) -> bytes:
        again = "download the file again"
        if self.nbytes < 8:
            raise CheckpointError(
                f"{self.path}: a safetensors file starts with 8 bytes of header length, found "
                f"{self.nbytes} bytes; {again}"
            )
        length = int.from_bytes(self._read(0, 8), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{self.path}: the header length must be at most {MAX_HEADER_BYTES:,}, found {length:,}; "
                f"{again}"
            )
        if length > self.nbytes - 8:
            raise CheckpointError(
                f"{self.path}: the header is {length:,} bytes long, but only {self.nbytes - 8:,} follow; "
                f"{again}"
            )
        return self._read(8, length)

    def _read(self, offset: int, length: int) -> bytes:
        data = b""
        while len(data) < length:
            self._file.seek(offset + len(data))
            part = self._file.read(length - len(data))
            if not part:
                raise CheckpointError(
                    f"{self.path}: ended at byte {offset + len(data):,} of {self.nbytes:,} while being read; "
                    "leave the file alone while it loads"
                )
            data += part
        return data

    def array(self, info: TensorInfo) -> np.ndarray:
        """A read-only view of a tensor, BF16 as uint16, in its shape; copied only when misaligned."""
        flat = self._bytes[info.begin : info.end].view(NUMPY_DTYPES[info.dtype])
        if not flat.flags.aligned:
            flat = flat.copy()
            flat.flags.writeable = False
        return flat.reshape(info.shape)

    def check_unchanged(self) -> None:
        """Raise CheckpointError when the file was changed since it was opened.

        Reading a page beyond a file's end kills the process (SIGBUS); loading calls this before and after, an
        LLM before each request. A file that takes this one's name is another file and changes nothing here.
        """
        status = os.fstat(self._file.fileno())
        if (status.st_size, status.st_mtime_ns) != self._identity:
            size = self._identity[0]
            how = f"from {size:,} bytes to {status.st_size:,}" + ", rewritten" * (size == status.st_size)
            raise CheckpointError(
                f"{self.path}: changed while it was open, {how}; leave the file alone and load it again"
            )

    def fileno(self) -> int:
        """The descriptor, for read-ahead."""
        return self._file.fileno()

    def address(self) -> int:
        """The address of byte 0 of the mapping, for read-ahead."""
        return self._bytes.ctypes.data

    def release_pages(self) -> None:
        """Take the file's pages out of this process's resident memory; they stay in the page cache.

        Edited numbers would be lost: for checkpoints that no model on the CPU uses.
        """
        self._advise("MADV_DONTNEED")

    def _advise(self, advice: str) -> bool:
        """Whether the system took it."""
        try:
            self._map.madvise(getattr(mmap, advice))
        except (AttributeError, OSError):
            return False
        return True


def parse_header(header: bytes, data_bytes: int, source: str) -> dict[str, TensorInfo]:
    """Validate a header against the `data_bytes` that follow it; returns its tensors by name, in file order.

    Raises CheckpointError unless the tensors cover the data exactly, without gap or overlap.
    """
    if not header.startswith(b"{"):
        raise CheckpointError(
            f"{source}: the header must start with "
            f"'{{', found {show(header[:8])}; this is not a safetensors file"
        )
    entries = parse_object(header, source)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(
            f"{source}: __metadata__ must map strings to strings, found {show(metadata)}; remove it"
        )
    start = 8 + len(header)
    infos = [_entry(name, entry, start, source) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.begin, info.end))
    position = start
    for info in infos:
        if info.begin != position:
            kind = "overlap" if info.begin < position else "a gap"
            raise CheckpointError(
                f"{source}: tensor {show(info.name)} must start at offset {position - start:,} of the "
                "data, found "
                f"{info.begin - start:,} ({kind}); download the file again"
            )
        position = info.end
    if position != start + data_bytes:
        raise CheckpointError(
            f"{source}: the header describes {position - start:,} bytes of tensors, the file holds "
            f"{data_bytes:,}; download the file again"
        )
    return {info.name: info for info in infos}


def _entry(name: str, entry: Any, start: int, source: str) -> TensorInfo:
    where = f"{source}: tensor {show(name)}"
    if len(name) > MAX_NAME_LENGTH:
        raise CheckpointError(
            f"{where} has a name of {len(name):,} characters, at most {MAX_NAME_LENGTH} are allowed; "
            "rename it"
        )
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where} must have exactly dtype, shape and data_offsets, found {show(entry)}; download the "
            "file again"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(
            f"{where} has dtype {show(dtype)}, expected one of {', '.join(DTYPE_BITS)}; convert it"
        )
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(
            f"{where} has shape {show(shape)}, expected at most {MAX_RANK} whole numbers; download the "
            "file again"
        )
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where} has data_offsets {show(offsets)}, expected [begin, end] with begin <= end; download "
            "the file again"
        )
    bits = prod(shape) * DTYPE_BITS[dtype]
    size = offsets[1] - offsets[0]
    if bits != size * 8:
        raise CheckpointError(
            f"{where} needs {show(bits // 8)} bytes for {dtype} {show(shape)}, its data_offsets hold "
            f"{show(size)}; "
            "download the file again"
        )
    return TensorInfo(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(value: Any) -> bool:
    """Whether `value` is a list of whole numbers that fit 63 bits (true and false are not numbers here)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
