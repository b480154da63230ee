"""Patch files: the rows that differ between two models of one shape, as stored, with what they replace.

A patch is a safetensors file. A tensor NAME@FIRST holds the new rows of checkpoint tensor NAME from row FIRST
on: bf16 [rows, columns], or bytes of MXFP4 codes and scales (U8). Rows are those of the matrices of all
experts one after the other; a vector's numbers are rows of one. The file's metadata has "format": "gptoss-
native-patch", "version", "name", and "before": JSON, the SHA-256 of the bytes that each tensor replaces.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..checkpoint.safetensors import SafetensorsFile
from ..checkpoint.safetensors_writer import TensorSource, write_safetensors
from ..config import ModelConfig
from ..errors import CheckpointError, RequestError
from ..strict_json import show
from .store import Region, Store, rows_of, specs_of

FORMAT, VERSION = "gptoss-native-patch", "1"


def write_patch(
    path: Path, name: str, touched: Mapping[str, list[tuple[int, int]]], before: Store, after: Store
) -> int:
    """Write the rows of `touched` that differ; returns the file's bytes. RequestError when none does."""
    sources, hashes = [], {}
    for tensor, spans in touched.items():
        for first, end in spans:
            old, new = before.read(tensor, first, end - first), after.read(tensor, first, end - first)
            changed = np.flatnonzero((old != new).any(axis=1))
            if not len(changed):
                continue
            low, high = int(changed[0]), int(changed[-1]) + 1
            key, rows = f"{tensor}@{first + low}", np.ascontiguousarray(new[low:high])
            packed = tensor.endswith(("_blocks", "_scales"))
            sources.append(TensorSource.from_array(key, rows if packed else rows.view("<u2")))
            hashes[key] = hashlib.sha256(np.ascontiguousarray(old[low:high])).hexdigest()
    if not sources:
        raise RequestError("nothing differs from the loaded numbers, so there is nothing to save; edit first")
    metadata = {"format": FORMAT, "version": VERSION, "name": name, "before": json.dumps(hashes)}
    return write_safetensors(path, sources, metadata=metadata)


def read_patch(path: Path, config: ModelConfig, store: Store, force: bool) -> tuple[str, list[Region]]:
    """Name and regions of a patch that fits the model. Raises CheckpointError for any other file.

    force: also where `store` holds other numbers than those that the patch was made to replace
    """
    file = SafetensorsFile(path)
    if file.metadata.get("format") != FORMAT or file.metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: format {show(file.metadata.get('format'))}, version "
            f"{show(file.metadata.get('version'))}; expected "
            f"{FORMAT} {VERSION}, as save_patch writes it"
        )
    try:
        hashes = json.loads(file.metadata.get("before", ""))
    except (ValueError, RecursionError):
        hashes = None
    if not isinstance(hashes, dict):
        raise CheckpointError(f"{path}: its metadata has no list of what it replaces; save the patch again")
    specs, regions = specs_of(config), []
    for key, info in file.tensors.items():
        found = re.fullmatch(r"(.+)@(\d{1,12})", key)
        spec = specs.get(found[1]) if found else None
        if found is None or spec is None:
            raise CheckpointError(
                f"{path}: tensor {show(key)} has no place in this model; use a patch of its kind"
            )
        first, (count, row_bytes) = int(found[2]), rows_of(spec)
        width = row_bytes // (2 if spec.dtype == "BF16" else 1)
        if (
            info.dtype != spec.dtype
            or len(info.shape) != 2
            or info.shape[1] != width
            or first + info.shape[0] > count
        ):
            raise CheckpointError(
                f"{path}: tensor {show(key)} is {info.dtype} {list(info.shape)}, this model's has {count} "
                "rows of "
                f"{spec.dtype} [{width}]; use a patch of its kind"
            )
        rows = np.array(file.array(info)).view(np.uint8).reshape(info.shape[0], row_bytes)
        if spec.name.endswith("_scales") and (rows == 255).any():
            raise CheckpointError(
                f"{path}: tensor {show(key)} holds a scale of 255, NaN in MXFP4; save the patch again"
            )
        if spec.dtype == "BF16" and ((rows.view("<u2") & 0x7F80) == 0x7F80).any():
            raise CheckpointError(f"{path}: tensor {show(key)} holds NaN or infinity; save the patch again")
        present = hashlib.sha256(store.read(spec.name, first, len(rows))).hexdigest()
        if not force and present != hashes.get(key):
            raise CheckpointError(
                f"{path}: tensor {show(key)} replaces other numbers than this model has there; apply it to "
                "the model it "
                "was made from, or pass force=True"
            )
        regions.append(Region(spec.name, first, rows))
    return str(file.metadata.get("name", path.name)), regions
