"""Open and validate a gpt-oss checkpoint: which files, which tensors, mapped without copying.

Whatever the layout on disk, tensors come out under Hugging Face's names. A checkpoint is hostile until
`open_checkpoint` returns it: then every tensor the config asks for is there as it asks, and no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import FieldError, ModelConfig, check_token_id
from ..errors import CheckpointError
from ..strict_json import read_object, show
from .config_files import is_openai
from .locate import contained_file, locate
from .prefetch import Range, joined, read_ahead
from .safetensors import SafetensorsFile, TensorInfo
from .tensor_names import StoredTensor, file_tensors

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAX_SHARDS = 512
MAX_INDEX_BYTES = 64 << 20


@dataclass(frozen=True)
class Tensor:
    """One tensor under its canonical name; `stored` is the entry of `file` whose rows from `row` on it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: SafetensorsFile
    stored: TensorInfo
    row: int = 0

    @property
    def range(self) -> Range:
        """Where its bytes are."""
        begin = self.stored.begin + self.row * (self.nbytes // self.shape[0])
        return self.file, begin, begin + self.nbytes

    def array(self) -> np.ndarray:
        """A read-only view of the mapped file: BF16 as uint16, MXFP4 blocks and scales as uint8."""
        return self.file.array(self.stored)[self.row : self.row + self.shape[0]]


class Checkpoint:
    """A validated checkpoint. Its arrays view the mapped files and keep them mapped."""

    def __init__(
        self,
        name: str,
        path: Path,
        layout: str,
        config: ModelConfig,
        tensors: dict[str, Tensor],
        generation: dict[str, Any],
    ):
        self.name = name
        self.path = path
        self.layout = layout  # "huggingface" or "openai"
        self.config = config
        self.tensors = tensors
        self.generation_config = generation
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())
        #: The open files, each once.
        self.files = list({id(tensor.file): tensor.file for tensor in tensors.values()}.values())

    @property
    def tokenizer_directory(self) -> Path:
        """Where tokenizer files are: the checkpoint's folder, or the one above OpenAI's `original`."""
        above = self.path.parent
        if self.path.name == "original" and not (self.path / "tokenizer.json").exists():
            return above if (above / "tokenizer.json").exists() else self.path
        return self.path

    def arrays(self) -> dict[str, np.ndarray]:
        """Canonical name -> read-only view: BF16 tensors as uint16, blocks and scales as uint8."""
        return {name: tensor.array() for name, tensor in self.tensors.items()}

    def prefetch(
        self,
        threads: int,
        progress: Callable[[int], None] | None = None,
        names: Iterable[str] | None = None,
    ) -> None:
        """Read the files, or the tensors of these names, into memory with `threads` threads.

        `progress` is told the bytes done so far.

        Raises CheckpointError when a file changes or cannot be read meanwhile.
        """
        if names is None:
            ranges = [(file, 0, file.nbytes) for file in self.files]
        else:
            ranges = joined(self.tensors[name].range for name in names)
        read_ahead(ranges, threads, progress)

    def check_unchanged(self) -> None:
        """Raise CheckpointError when a file was changed since the checkpoint was opened."""
        for file in self.files:
            file.check_unchanged()

    def release_pages(self) -> None:
        """Give back the resident memory of the mapped files, e.g. after the weights were copied elsewhere."""
        for file in self.files:
            file.release_pages()


def open_checkpoint(name_or_path: str | os.PathLike[str]) -> Checkpoint:
    """Open "demo", a folder in either layout, or a name like "openai/gpt-oss-20b" in the Hugging Face cache.

    Reads headers only and never uses the network. Raises CheckpointError.
    """
    try:
        name = os.fsdecode(name_or_path)
    except TypeError:
        raise CheckpointError(
            f"the checkpoint is {show(name_or_path)}, expected a name or a path; pass demo or a folder"
        ) from None
    try:
        return _open(name)
    except OSError as error:  # e.g. a folder that may not be listed
        raise CheckpointError(
            f"{show(name)}: {error.filename} cannot be read ({error.strerror}); check its permissions"
        ) from None


def _open(name: str) -> Checkpoint:
    folder = weights_folder(locate(name))
    source = contained_file(folder, "config.json")
    values = read_object(source)
    layout = "openai" if is_openai(values) else "huggingface"
    reader = ModelConfig.from_openai if layout == "openai" else ModelConfig.from_huggingface
    config = reader(values, str(source))
    found = open_files(folder)
    tensors = _match(folder, config, layout, found)
    return Checkpoint(name, folder, layout, config, tensors, _generation_config(folder, config))


def weights_folder(folder: Path) -> Path:
    """`folder`, or its `original` when only that holds a checkpoint."""
    original = folder / "original"
    has_config, has_weights = (folder / "config.json").is_file(), _has_weights(folder)
    if not (has_config and has_weights) and (original / "config.json").is_file() and _has_weights(original):
        return original
    if not has_config:
        raise CheckpointError(
            f"{folder}: expected config.json, found none; pass the folder of a gpt-oss checkpoint"
        )
    return folder


def _has_weights(folder: Path) -> bool:
    return (folder / INDEX).is_file() or next(folder.glob("model*.safetensors"), None) is not None


def open_files(folder: Path) -> dict[str, tuple[SafetensorsFile, TensorInfo]]:
    """Open every shard; returns stored name -> (file, entry)."""
    weight_map = _weight_map(folder)
    if weight_map is None:
        names = sorted(path.name for path in folder.glob("model*.safetensors"))
    else:
        names = sorted(set(weight_map.values()))
    if not names:
        raise CheckpointError(f"{folder}: expected {SINGLE} or {INDEX}, found neither; download the weights")
    if len(names) > MAX_SHARDS:
        raise CheckpointError(
            f"{folder}: {len(names):,} shards, at most {MAX_SHARDS} are allowed; merge them"
        )
    if weight_map is not None and SINGLE not in names and (folder / SINGLE).is_file():
        raise CheckpointError(
            f"{folder}: holds {SINGLE}, but {INDEX} names {names[0]} and does not name it; delete the one "
            "that is stale"
        )
    found: dict[str, tuple[SafetensorsFile, TensorInfo]] = {}
    for name in names:
        file = SafetensorsFile(contained_file(folder, name))
        for info in file.tensors.values():
            if info.name in found:
                raise CheckpointError(
                    f"{file.path}: tensor {show(info.name)} is also in {found[info.name][0].path.name}; "
                    "delete one of the files"
                )
            found[info.name] = (file, info)
    if weight_map is not None:
        _check_index(folder / INDEX, weight_map, found)
    return found


def _weight_map(folder: Path) -> dict[str, str] | None:
    """The index's tensor name -> shard name; None when there is no index."""
    if not os.path.lexists(folder / INDEX):
        return None
    source = contained_file(folder, INDEX)
    index = read_object(source, MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{source}: weight_map must map tensor names to files, found {show(weight_map)}; download the "
            "index again"
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{source}: tensor {show(name)} must be in a .safetensors file, found {show(shard)}; "
                "download the index again"
            )
    return weight_map


def _check_index(
    source: Path, weight_map: dict[str, str], found: dict[str, tuple[SafetensorsFile, TensorInfo]]
) -> None:
    """The index and the shards must tell the same, in both directions."""
    for name, shard in weight_map.items():
        actual = found[name][0].path.name if name in found else "no file"
        if actual != shard:
            raise CheckpointError(
                f"{source}: tensor {show(name)} should be in {shard}, found it in {actual}; download both "
                "again"
            )
    for name, (file, _) in found.items():
        if name not in weight_map:
            raise CheckpointError(
                f"{file.path}: tensor {show(name)} is not in {source.name}; download both again"
            )


def _match(
    folder: Path, config: ModelConfig, layout: str, found: dict[str, tuple[SafetensorsFile, TensorInfo]]
) -> dict[str, Tensor]:
    """Canonical name -> tensor; everything the config asks for, exactly, and nothing else."""
    _refuse_unquantised_experts(folder, found)
    tensors: dict[str, Tensor] = {}
    unused = dict(found)
    for wanted in file_tensors(config, layout):
        if wanted.name not in unused:
            raise CheckpointError(
                f"{folder}: tensor {wanted.name} is missing, expected {wanted.dtype} {list(wanted.shape)} "
                f"among {len(found)} tensors; download the weights again"
            )
        file, info = unused.pop(wanted.name)
        _check_tensor(file, info, wanted)
        row = 0
        for part in wanted.parts:
            tensors[part.name] = Tensor(part.name, part.dtype, part.shape, part.nbytes, file, info, row)
            row += part.shape[0]
    if unused:
        name, (file, _) = next(iter(unused.items()))
        raise CheckpointError(
            f"{file.path}: tensor {show(name)} has no place in a gpt-oss model of "
            f"{config.num_hidden_layers} layers "
            f"({len(unused)} such tensors); remove it or correct config.json"
        )
    return tensors


def _check_tensor(file: SafetensorsFile, info: TensorInfo, wanted: StoredTensor) -> None:
    if (info.dtype, info.shape) != (wanted.dtype, wanted.shape):
        raise CheckpointError(
            f"{file.path}: tensor {wanted.name} is {info.dtype} {show(list(info.shape))}, expected "
            f"{wanted.dtype} "
            f"{list(wanted.shape)} from config.json; use the files of one model"
        )


def _refuse_unquantised_experts(folder: Path, found: dict[str, tuple[SafetensorsFile, TensorInfo]]) -> None:
    for name, (file, info) in found.items():
        if name.endswith((".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")):
            raise CheckpointError(
                f"{file.path}: tensor {show(name)} is {info.dtype} {show(list(info.shape))}, but experts "
                "must be MXFP4 "
                f"({name.rsplit('.', 1)[1]}_blocks and _scales); quantise them with `gptoss-native convert`"
            )


def _generation_config(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """generation_config.json with its token ids checked, the rest as found; {} when there is none."""
    places = [folder, folder.parent] if folder.name == "original" else [folder]
    place = next((place for place in places if os.path.lexists(place / "generation_config.json")), None)
    if place is None:
        return {}
    source = contained_file(place, "generation_config.json")
    values = read_object(source)
    try:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = values.get(name)
            for token in value if isinstance(value, list) else [] if value is None else [value]:
                check_token_id(name, token, config.vocab_size)
    except FieldError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return values
