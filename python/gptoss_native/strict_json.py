"""JSON from outside: one object, UTF-8, no duplicate keys, no NaN, bounded size and nesting.

Python's parser accepts more than RFC 8259 does (NaN, Infinity, the last of two equal keys), and two readers
that disagree about a header can be made to see two different checkpoints. So all of that is an error here.
"""

import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any

from .errors import CheckpointError

# Containers cost ~60 bytes each for as little as two bytes of text; this bounds what a hostile file can
# inflate to.
MAX_CONTAINERS = 300_000
MAX_COMMAS = 4_000_000

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


def show(value: Any) -> str:
    """A value for an error message: ASCII, one line, at most about 80 characters."""
    try:
        text = _short.repr(value)
    except ValueError:  # an integer beyond Python's limit for decimal conversion
        text = f"an integer of {value.bit_length()} bits"
    return text.encode("ascii", "backslashreplace").decode("ascii")


def parse_object(data: bytes, source: str, max_containers: int = MAX_CONTAINERS) -> dict[str, Any]:
    """Parse `data` as one JSON object.

    Raises CheckpointError, naming `source`, for anything else than a strict RFC 8259 object.
    """
    if data.count(b"{") + data.count(b"[") > max_containers or data.count(b",") > MAX_COMMAS:
        raise CheckpointError(
            f"{source}: the JSON holds more than {max_containers:,} objects and lists or {MAX_COMMAS:,} "
            "commas in "
            f"{len(data):,} bytes; a real checkpoint has far fewer, so download the file again"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CheckpointError(
                f"{source}: the key {show(twice)} appears twice in one object; remove one of them"
            )
        return result

    def not_finite(word: str) -> Any:
        raise CheckpointError(f"{source}: {word} is not a JSON number; write a finite number instead")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=not_finite)
    except CheckpointError:
        raise
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{source}: byte {error.start} is not valid UTF-8; the file is damaged, download it again"
        ) from None
    except RecursionError:
        raise CheckpointError(
            f"{source}: the JSON is nested too deeply; a checkpoint needs at most 4 levels"
        ) from None
    except ValueError as error:  # a syntax error, or an integer of more than 4300 digits
        raise CheckpointError(f"{source}: not valid JSON ({error}); download the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{source}: expected one JSON object, found a {type(value).__name__} ({show(value)}); "
            "check that this is the right file"
        )
    return value


def open_regular(path: Path) -> tuple[int, os.stat_result]:
    """Open a file for reading, refusing folders, pipes and devices; returns (descriptor, its status)."""
    flags = (
        os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{path}: cannot be opened ({reason}); check the path and its permissions"
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: expected a regular file, found a folder or device; check the path")
    return descriptor, status


def read_object(path: Path, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """Read the JSON object in a file of at most `max_bytes`; raises CheckpointError."""
    descriptor, status = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > max_bytes:
            raise CheckpointError(
                f"{path}: {status.st_size:,} bytes, but at most {max_bytes:,} are expected; check the file"
            )
        try:
            data = file.read(status.st_size)  # Python allocates what it is asked to read
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the disk") from None
    return parse_object(data, str(path))
