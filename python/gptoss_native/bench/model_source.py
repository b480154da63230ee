"""The model that a bench runs: a checkpoint that is there, or random weights of a shape."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..checkpoint.tensor_names import expected_tensors
from ..errors import RequestError
from .random_weights import SHARD_BYTES, write_synthetic
from .shapes import SHAPES

RANDOM = "random:"
MODEL_HELP = (
    "demo, a checkpoint's folder, a name in the Hugging Face cache, or random weights of a shape: "
    + ", ".join(RANDOM + name for name in SHAPES)
)
FOLDER_HELP = (
    "where random weights are kept for the next time; default: a temporary folder, removed at the end"
)


@contextmanager
def model_folder(name: str, keep: Path | None, tell: Callable[[str], None]) -> Iterator[str]:
    """What LLM takes as its model. Random weights are written first, where `keep` does not have them yet.

    Raises RequestError for a shape that nobody knows, CheckpointError where the disk lacks room.
    """
    if not name.startswith(RANDOM):
        yield name
        return
    shape = name[len(RANDOM) :]
    if shape not in SHAPES:
        known = ", ".join(RANDOM + each for each in SHAPES)
        raise RequestError(f"MODEL is {name!r}, whose shape is unknown; there are {known}")
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="gptoss-bench-") as folder:
            yield str(_written(shape, Path(folder), tell))
    else:
        yield str(_written(shape, keep, tell))


def _written(shape: str, folder: Path, tell: Callable[[str], None]) -> Path:
    path, config = folder / f"random-{shape}", SHAPES[shape]
    if path.exists():
        if open_checkpoint(path).config != config:
            raise RequestError(
                f"{path} is a checkpoint of another shape than {shape}; remove it or choose another --folder"
            )
        return path
    size = sum(spec.nbytes for spec in expected_tensors(config))
    tell(f"writing random weights of the {shape} shape, {size / 1e9:.2f} GB, to {path}")
    write_synthetic(path, config, 0, SHARD_BYTES, "huggingface")
    return path
