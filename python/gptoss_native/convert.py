"""Experts from BF16 to MXFP4 and back, one at a time: for fine-tunes, which are made in BF16.

An unquantised checkpoint in Hugging Face's layout holds mlp.experts.gate_up_proj [experts, hidden, 2 * inner]
and down_proj [experts, inner, hidden]: inputs are rows there. All other tensors are the same in both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import open_checkpoint
from .checkpoint.config_files import to_huggingface
from .checkpoint.locate import contained_file, locate
from .checkpoint.reader import open_files, weights_folder
from .checkpoint.safetensors import SafetensorsFile, TensorInfo
from .checkpoint.safetensors_writer import TensorSource
from .checkpoint.tensor_names import TensorSpec, expected_tensors
from .checkpoint.writer import write_checkpoint, write_files
from .config import ModelConfig
from .errors import CheckpointError, RequestError
from .export import copy_companions
from .new_folder import new_folder
from .parameters import Parameters
from .parameters.formats import WriteReport, decode_bf16, encode_bf16, encode_mxfp4
from .parameters.store import FileStore, specs_of
from .strict_json import read_object, show

CHUNK_VALUES = 1 << 22
#: Told of each tensor that has been rounded.
Listener = Callable[[str, WriteReport], None]


def to_mxfp4(
    source: str | os.PathLike[str], folder: Path, on_tensor: Listener, shard_bytes: int | None = None
) -> Path:
    """Write a copy of an unquantised checkpoint with its experts in MXFP4 (OCP MX v1.0, section 6.3).

    source: a folder in Hugging Face's layout, with tensors in BF16, F16 or F32
    Raises CheckpointError for any other, and where a number is not finite.
    """
    origin = weights_folder(locate(os.fsdecode(source)))
    config = ModelConfig.from_huggingface(
        read_object(contained_file(origin, "config.json")), str(origin / "config.json")
    )
    wide = _Unquantised(origin, config, open_files(origin), on_tensor)
    with new_folder(folder, sum(spec.nbytes for spec in specs_of(config).values())) as partial:
        write_checkpoint(partial, config, wide.chunks, "huggingface", shard_bytes)
        copy_companions([origin], partial)
    return Path(os.path.abspath(folder))


def to_bf16(source: str | os.PathLike[str], folder: Path, shard_bytes: int | None = None) -> Path:
    """Write a copy of a checkpoint with its experts in BF16, which holds every MXFP4 number exactly."""
    checkpoint = open_checkpoint(source)
    config = checkpoint.config
    parameters = Parameters(config, FileStore(checkpoint.arrays(), specs_of(config)))
    sources = []
    for name, parameter in parameters.items():
        shape = parameter.shape
        if parameter.dtype == "MXFP4":
            shape = (shape[0], shape[2], shape[1])
        sources.append(TensorSource(name, "BF16", shape, _bf16_chunks(parameter)))
    values = to_huggingface(config)
    del values["quantization_config"]
    with new_folder(folder, sum(each.nbytes for each in sources)) as partial:
        write_files(partial, values, sources, shard_bytes)
        copy_companions([checkpoint.path, checkpoint.tokenizer_directory], partial)
    return Path(os.path.abspath(folder))


def _bf16_chunks(parameter: Any) -> Callable[[], Iterator[np.ndarray]]:
    def chunks() -> Iterator[np.ndarray]:
        if parameter.dtype == "BF16":
            for values in parameter.values():
                yield encode_bf16(values, parameter.name)[0]
            return
        for expert in parameter.experts:
            yield encode_bf16(np.ascontiguousarray(expert.decode().T), parameter.name)[0]

    return chunks


@dataclass
class _Unquantised:
    """The tensors of an unquantised checkpoint, as an MXFP4 one wants them."""

    folder: Path
    config: ModelConfig
    found: Mapping[str, tuple[SafetensorsFile, TensorInfo]]
    on_tensor: Listener

    def __post_init__(self) -> None:
        self._scales: dict[str, list[np.ndarray]] = {}
        wanted = {}
        for spec in expected_tensors(self.config):
            name = spec.name.removesuffix("_blocks").removesuffix("_scales")
            experts, rows, *rest = spec.shape if name != spec.name else (0, 0)
            wanted[name] = (experts, rest[0] * 32, rows) if name != spec.name else spec.shape
        for name, shape in wanted.items():
            if name not in self.found and name + "_blocks" in self.found:
                raise CheckpointError(
                    f"{self.folder}: {name} is in MXFP4 already; there is nothing to convert"
                )
            if name not in self.found:
                raise CheckpointError(
                    f"{self.folder}: tensor {name} is missing; pass an unquantised checkpoint"
                )
            file, info = self.found[name]
            if info.shape != shape or info.dtype not in ("BF16", "F16", "F32"):
                raise CheckpointError(
                    f"{file.path}: tensor {name} is {info.dtype} {list(info.shape)}, expected BF16, F16 or "
                    "F32 "
                    f"{list(shape)}; check config.json"
                )
        unknown = self.found.keys() - wanted.keys()
        if unknown:
            raise CheckpointError(
                f"{self.folder}: tensor {show(min(unknown))} has no place in a gpt-oss model "
                f"({len(unknown)} such tensors); merge adapters first, or remove it"
            )

    def chunks(self, spec: TensorSpec) -> Iterable[np.ndarray]:
        """The bytes of one tensor of the new checkpoint. Scales are kept from when codes were written."""
        name = spec.name
        if name.endswith("_scales"):
            yield from self._scales.pop(name.removesuffix("_scales"))
        elif name.endswith("_blocks"):
            yield from self._codes(name.removesuffix("_blocks"))
        else:
            yield from self._dense(name)

    def _codes(self, name: str) -> Iterator[np.ndarray]:
        total, scales = WriteReport(), self._scales.setdefault(name, [])
        for number in range(self.config.num_local_experts):
            values = np.ascontiguousarray(self._floats(name, number).T)
            try:
                codes, scale, report = encode_mxfp4(values, None, None, f"{name}, expert {number}")
            except RequestError as error:
                raise CheckpointError(f"{self.folder}: {error}") from None
            total += report
            scales.append(scale)
            yield codes
        self.on_tensor(name, total)

    def _dense(self, name: str) -> Iterator[np.ndarray]:
        file, info = self.found[name]
        if info.dtype == "BF16":
            yield np.ascontiguousarray(file.array(info))
            return
        flat, total = file.array(info).reshape(-1), WriteReport()
        for first in range(0, len(flat), CHUNK_VALUES):
            values = flat[first : first + CHUNK_VALUES].astype(np.float32)[None]
            try:
                rows, report = encode_bf16(values, name)
            except RequestError as error:
                raise CheckpointError(f"{self.folder}: {error}") from None
            total += report
            yield rows
        self.on_tensor(name, total)

    def _floats(self, name: str, expert: int) -> np.ndarray:
        file, info = self.found[name]
        values = file.array(info)[expert]
        if info.dtype == "BF16":
            return decode_bf16(np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1))
        return values.astype(np.float32)
