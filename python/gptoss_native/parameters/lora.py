"""PEFT's LoRA adapters: read, and merged into a model's numbers.

An adapter is a folder with adapter_config.json and adapter_model.safetensors. For a linear layer it holds
lora_A [r, in] and lora_B [out, r]; for the experts' fused tensors, which PEFT calls target parameters, lora_A
[experts * r, in], expert by expert, and lora_B [out, r * experts], rank by rank. What is added to a weight is
scale * B A, with scale = lora_alpha / r, or lora_alpha / sqrt(r) where use_rslora is set. Source: PEFT 0.21,
tuners/lora/layer.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arguments import as_path
from ..checkpoint.locate import contained_file
from ..checkpoint.safetensors import SafetensorsFile, TensorInfo
from ..config import ModelConfig
from ..errors import CheckpointError
from ..strict_json import read_object, show
from .formats import decode_bf16
from .lora_settings import LoraSettings

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLE = "adapter_model.bin"
_KEY = re.compile(
    r"base_model\.model\.(?P<module>(?:model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.router|mlp\.experts)"
    r"|lm_head))(?P<outer>(?:\.base_layer)*)\.lora_(?P<part>[AB])(?:\.default)?\.weight"
)


@dataclass(frozen=True)
class LoraMatrix:
    """What an adapter adds to one parameter: scale * b @ a, to each expert's part its own.

    a: float32 [r, in] or [experts, r, in]; b: float32 [out, r] or [experts, out, r]
    """

    name: str  # of the parameter
    a: np.ndarray
    b: np.ndarray
    scale: float

    def delta(self, expert: int | None = None) -> np.ndarray:
        """float32 [out, in]; expert: of a parameter of experts."""
        a, b = (self.a, self.b) if expert is None else (self.a[expert], self.b[expert])
        return np.float32(self.scale) * (b @ a)


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter for models of one shape."""

    name: str
    matrices: tuple[LoraMatrix, ...]

    def deltas(self) -> Iterator[tuple[str, np.ndarray]]:
        """(parameter or expert's part, what is added to it), one after the other."""
        for matrix in self.matrices:
            if ".mlp.experts." not in matrix.name:
                yield matrix.name, matrix.delta()
                continue
            for expert in range(len(matrix.a)):
                yield matrix.name.replace(".experts.", f".experts.{expert}."), matrix.delta(expert)


def load_lora(folder: str | Path, config: ModelConfig) -> LoraAdapter:
    """Read an adapter for a model of this shape. Raises CheckpointError for any other folder."""
    folder = as_path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder; pass one with {CONFIG} and {WEIGHTS}")
    if (folder / PICKLE).exists() and not (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{folder}: has {PICKLE}, a pickle, which could run anything and is not read; save the adapter "
            f"as {WEIGHTS} (save_pretrained of PEFT does)"
        )
    settings = LoraSettings(folder, read_object(contained_file(folder, CONFIG)))
    file = SafetensorsFile(contained_file(folder, WEIGHTS))
    pairs: dict[tuple[str, str], dict[str, TensorInfo]] = {}
    for key, info in file.tensors.items():
        if key == "base_model.model.lm_head.base_layer.weight":
            continue  # PEFT saves a copy of what it adapts there; it is the model's own
        found = _KEY.fullmatch(key)
        if found is None or info.dtype not in ("BF16", "F16", "F32") or len(info.shape) != 2:
            raise CheckpointError(
                f"{file.path}: tensor {show(key)} ({info.dtype} {list(info.shape)}) is no LoRA of "
                "attention, router, "
                "experts or lm_head; use an adapter made for gpt-oss"
            )
        pairs.setdefault((found["module"], found["outer"]), {})[found["part"]] = info
    matrices = []
    for (module, _), parts in pairs.items():
        if parts.keys() != {"A", "B"}:
            raise CheckpointError(f"{file.path}: {module} has only lora_{min(parts)}; save the adapter again")
        a, b = (_floats(file, parts[part]) for part in "AB")
        matrices.append(_matrix(file.path, module, a, b, settings, config))
    if not matrices:
        raise CheckpointError(f"{file.path}: holds no tensors; save the adapter again")
    names = [matrix.name for matrix in matrices]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{file.path}: adds to one parameter twice; save the adapter again")
    return LoraAdapter(folder.name, tuple(matrices))


def _matrix(
    path: Path, module: str, a: np.ndarray, b: np.ndarray, settings: LoraSettings, config: ModelConfig
) -> LoraMatrix:
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    shapes = {
        "q_proj": (config.query_size, hidden),
        "k_proj": (config.key_value_size, hidden),
        "v_proj": (config.key_value_size, hidden),
        "o_proj": (hidden, config.query_size),
        "router": (experts, hidden),
        "lm_head": (config.vocab_size, hidden),
    }
    if re.match(r"model\.layers\.(\d+)", module) and int(module.split(".")[2]) >= config.num_hidden_layers:
        raise CheckpointError(
            f"{path}: {module} is adapted, the model has {config.num_hidden_layers} layers; use an adapter "
            "of this model"
        )
    if module.endswith(".experts"):
        # PEFT does not say which of the two fused tensors is meant; their shapes do.
        fused = {(2 * inner, hidden): "gate_up_proj", (hidden, inner): "down_proj"}
        kind = fused.get((b.shape[0], a.shape[1]))
        if kind is None or a.shape[0] != b.shape[1] or a.shape[0] % experts:
            raise CheckpointError(
                f"{path}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, which fit no "
                "tensor of "
                f"{experts} experts, {hidden} wide with {inner} inside; use an adapter of this model"
            )
        rank = a.shape[0] // experts
        a = a.reshape(experts, rank, -1)
        b = np.ascontiguousarray(b.reshape(-1, rank, experts).transpose(2, 0, 1))
    else:
        out, width = shapes[module.rsplit(".", 1)[-1]]
        rank = a.shape[0]
        if (b.shape[0], a.shape[1]) != (out, width) or b.shape[1] != rank:
            raise CheckpointError(
                f"{path}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, the model's "
                "weight is "
                f"[{out}, {width}]; use an adapter of this model"
            )
        kind = "weight"
    return LoraMatrix(f"{module}.{kind}", a, b, settings.scale(module, kind, rank))


def _floats(file: SafetensorsFile, info: TensorInfo) -> np.ndarray:
    array = file.array(info)
    if info.dtype == "BF16":
        array = decode_bf16(np.ascontiguousarray(array).view(np.uint8).reshape(info.shape[0], -1))
    values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all() or 0 in values.shape:
        raise CheckpointError(
            f"{file.path}: tensor {show(info.name)} is empty or holds NaN; save the adapter again"
        )
    return values
