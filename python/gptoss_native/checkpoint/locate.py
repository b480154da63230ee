"""From what a user typed to a folder: the packaged demo, a folder, or the local Hugging Face cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..config import KNOWN_CONFIGS
from ..errors import CheckpointError
from ..strict_json import show

DEMO = Path(__file__).parents[1] / "demo" / "model"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder that a name means: "demo", a folder, or "organisation/model" in the Hugging Face cache.

    Never uses the network. Raises CheckpointError saying where it looked and how to get the model.
    """
    name = os.fspath(name_or_path)
    if name == "demo":
        return DEMO
    expanded = os.path.expanduser(name)
    if name and os.path.isdir(expanded):
        return Path(expanded)
    if os.path.isfile(expanded):
        raise CheckpointError(
            f"{name}: expected a folder that holds config.json, found a file; pass "
            f"{os.path.dirname(expanded) or '.'}"
        )
    if _REPOSITORY.fullmatch(name):
        return _cached_snapshot(name)
    published = f"openai/{name}" in KNOWN_CONFIGS
    raise CheckpointError(
        f"no checkpoint at {show(name)}: it is neither 'demo' nor a folder nor a model's full name; "
        + (f"write openai/{name}" if published else "check the path, or pass demo or openai/gpt-oss-20b")
    )


def cache_folder() -> Path:
    """Hugging Face's cache folder, from the same environment variables that huggingface_hub reads."""
    environment = os.environ.get
    if environment("HF_HUB_CACHE"):
        return Path(environment("HF_HUB_CACHE")).expanduser()
    home = environment("HF_HOME")
    if not home:
        home = os.path.join(environment("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home)) / "hub"


def _cached_snapshot(name: str) -> Path:
    if name in KNOWN_CONFIGS:
        download = f"run `gptoss-native download {name}` or pass a folder"
    else:  # any repository may hold a gpt-oss model, and most do not
        download = f"pass demo or a folder, or, if it is a gpt-oss model, run `gptoss-native download {name}`"
    repository = cache_folder() / ("models--" + name.replace("/", "--"))
    snapshots = repository / "snapshots"
    if not snapshots.is_dir():
        raise CheckpointError(
            f"{name}: neither a folder nor a model in the Hugging Face cache {cache_folder()}; {download}"
        )
    reference = repository / "refs" / "main"
    if reference.is_file():
        with open(reference, "rb") as file:
            revision = file.read(200).decode("ascii", "replace").strip()
        if not _REVISION.fullmatch(revision):
            raise CheckpointError(f"{reference}: expected a revision, found {show(revision)}; {download}")
    else:
        found = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
        if len(found) != 1:
            raise CheckpointError(
                f"{name}: expected refs/main or one snapshot in {snapshots}, found {len(found)}; {download}"
            )
        revision = found[0]
    snapshot = snapshots / revision
    if not snapshot.is_dir():
        raise CheckpointError(
            f"{name}: refs/main names revision {revision}, which is not in {snapshots}; {download}"
        )
    return snapshot


def contained_file(folder: Path, name: str) -> Path:
    """`folder/name`, when `name` is a plain file name that leads to no file outside the folder.

    A Hugging Face cache stores every file as a link into its own blobs, so those are allowed. Raises
    CheckpointError otherwise, whether or not the target exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}", name):
        raise CheckpointError(
            f"{folder}: {show(name)} must be a plain file name inside the folder; correct the index or "
            "rename the file"
        )
    path = folder / name
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(path))
    allowed = [root, *_blob_folders(root), *_blob_folders(Path(os.path.abspath(folder)))]
    if not any(target.is_relative_to(place) for place in allowed):
        raise CheckpointError(
            f"{path}: is a link out of the folder, to {target}; copy that file here instead"
        )
    return path


def _blob_folders(folder: Path) -> list[Path]:
    """The blob folder of the cached repository whose snapshot `folder` is (or is inside of)."""
    for place in (folder, *folder.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and repository.name.startswith("models--"):
            blobs = repository / "blobs"
            return [] if blobs.is_symlink() else [Path(os.path.realpath(blobs))]
    return []
