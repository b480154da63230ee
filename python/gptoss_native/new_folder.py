"""A folder that is there under its name only when everything is in it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import CheckpointError

#: What makes a folder of files a checkpoint; where files come one by one, it is the last.
LAST = "config.json"
#: On every new ext4 disk.
OF_THE_DISK = "lost+found"


@contextmanager
def new_folder(folder: Path, need: int) -> Iterator[Path]:
    """A folder to fill, which takes its name once the block ends; nothing is left of it after an error.

    folder: a name that nobody has, or an empty folder, also behind a link. Where it cannot be replaced, as
        where a disk is mounted, it is filled file by file at the end, config.json last
    Raises CheckpointError when `folder` exists and is not empty, when its disk has no `need` bytes, and for
    what the system says in the block.
    """
    target = Path(os.path.realpath(folder))
    try:
        inside = _must_stay(target)
        place = target if inside else target.parent
        partial = place / f".{target.name}.{os.getpid()}.part"
        place.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place, target.name)
        if target.exists() and (not target.is_dir() or set(os.listdir(target)) - {OF_THE_DISK}):
            raise CheckpointError(f"{folder}: exists already; choose a new folder, or an empty one")
        free = shutil.disk_usage(place).free
        if free < need:
            raise CheckpointError(
                f"{folder}: the checkpoint takes {need:,} bytes, the disk has {free:,} free; free some "
                "space or choose another place"
            )
        with _locked_folder(partial):
            yield partial
            _sync(partial)
            if inside:
                _move_in(partial, target)
            else:
                if target.exists():
                    target.rmdir()
                os.rename(partial, target)
        _sync(place)
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}{where}); check the permissions, of the folder "
            "that it is in too, and the space that is left"
        ) from None


def _must_stay(folder: Path) -> bool:
    """Whether another folder cannot take its place."""
    return folder.is_dir() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK))


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """A new folder, removed afterwards if it still has its name. Its lock says that somebody is at it."""
    folder.mkdir()
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # not every file system has locks; nobody takes it for abandoned there
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(place: Path, name: str) -> None:
    """What processes left that were killed while they wrote a folder of this name."""
    for path in place.glob(".*.part"):
        found = re.fullmatch(rf"\.{re.escape(name)}\.(\d+)\.part", path.name)
        if found and (int(found[1]) == os.getpid() or not _is_alive(int(found[1]))) and _is_unlocked(path):
            shutil.rmtree(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _is_unlocked(folder: Path) -> bool:
    """Numbers of processes are those of one container; a lock is seen from all that share the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _move_in(partial: Path, folder: Path) -> None:
    """Everything under its own name, or nothing."""
    moved = []
    try:
        for path in sorted(partial.iterdir(), key=lambda path: (path.name == LAST, path.name)):
            os.rename(path, folder / path.name)
            moved.append(folder / path.name)
        _sync(folder)
    except BaseException:
        for path in reversed(moved):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _sync(folder: Path) -> None:
    """A rename, or a file's name, is on disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
