"""Read mapped files ahead in parallel, so that the first use of the weights finds them in memory.

One thread faulting in pages singly reaches a fraction of a disk's bandwidth. Linux 5.14 and later map whole
ranges with MADV_POPULATE_READ, which copies nothing and reports truncation as an error, not a signal;
elsewhere the range is read into a small scratch buffer, which fills the page cache too.

Where the file system keeps large folios (ext4 since Linux 6.16, XFS), files that the page cache does not hold
yet come into it in huge pages, and are mapped so: a third more bandwidth than with pages of 4 KiB.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ..errors import CheckpointError
from .safetensors import SafetensorsFile

CHUNK_BYTES = 32 << 20  # a multiple of every page size
SCRATCH_BYTES = 1 << 20
MADV_POPULATE_READ = 22  # Linux's include/uapi/asm-generic/mman-common.h; Python has no name for it

_scratch = threading.local()


#: Bytes of a file, from the first to behind the last.
Range = tuple[SafetensorsFile, int, int]


def read_ahead(ranges: Sequence[Range], threads: int, progress: Callable[[int], None] | None = None) -> None:
    """Bring parts of files into the page cache; `progress` is told the bytes done so far, from this thread.

    Raises CheckpointError when a file was changed or cannot be read.
    """
    if threads < 1:
        raise ValueError(f"prefetch needs at least 1 thread, found {threads}")
    files = {id(file): file for file, _, _ in ranges}.values()
    chunks = list(_chunks(ranges))
    for file in files:
        file.check_unchanged()
    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        futures = [pool.submit(_load, *chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                done += future.result()
                if progress is not None:
                    progress(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for file in files:
        file.check_unchanged()


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as possible, in the order of the files."""
    found: list[Range] = []
    for file, begin, end in sorted(ranges, key=lambda part: (str(part[0].path), part[1])):
        if found and found[-1][0] is file and begin <= found[-1][2]:
            found[-1] = (file, found[-1][1], max(end, found[-1][2]))
        else:
            found.append((file, begin, end))
    return found


def _chunks(ranges: Sequence[Range]) -> Iterator[tuple[SafetensorsFile, int, int]]:
    """(file, offset, length): whole pages, cut where huge pages may begin."""
    for file, begin, end in ranges:
        offset = begin // mmap.PAGESIZE * mmap.PAGESIZE
        while offset < end:
            length = min(end, (offset // CHUNK_BYTES + 1) * CHUNK_BYTES) - offset
            yield file, offset, length
            offset += length


def _load(file: SafetensorsFile, offset: int, length: int) -> int:
    if hasattr(os, "posix_fadvise") and not file.wants_huge_pages:
        # Starts large reads; populating alone reads in units of the device's small read-ahead window, except
        # where huge pages are wanted, which this would fill with small ones.
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
    if not _populate(file, offset, length):
        _read(file, offset, length)
    return length


def _populate(file: SafetensorsFile, offset: int, length: int) -> bool:
    """Map a range of the file's pages; False when the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    madvise = ctypes.CDLL(None, use_errno=True).madvise  # unlike mmap.madvise, ctypes releases the GIL
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    padded = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
    if madvise(file.address() + offset, padded, MADV_POPULATE_READ) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EFAULT:  # where a plain read of the page would raise SIGBUS
        file.check_unchanged()
        raise CheckpointError(
            f"{file.path}: bytes {offset:,} to {offset + length:,} cannot be read; check the disk"
        )
    return False


def _read(file: SafetensorsFile, offset: int, length: int) -> None:
    """Read a range through a scratch buffer of this thread."""
    if not hasattr(_scratch, "buffer"):
        _scratch.buffer = bytearray(SCRATCH_BYTES)
    end = offset + length
    while offset < end:
        view = memoryview(_scratch.buffer)[: min(SCRATCH_BYTES, end - offset)]
        try:
            count = os.preadv(file.fileno(), [view], offset)
        except OSError as error:
            raise CheckpointError(
                f"{file.path}: bytes from {offset:,} cannot be read ({error.strerror}); check the disk"
            ) from None
        if count == 0:
            raise CheckpointError(
                f"{file.path}: ended at byte {offset:,} of {file.nbytes:,} while being read; leave the "
                "file alone and load it again"
            )
        offset += count
