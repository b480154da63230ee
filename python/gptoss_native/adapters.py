"""LoRA adapters that stay loaded: a request chooses one by its name, beside others with none or another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import ModelConfig
from .errors import CheckpointError, GptossError, RequestError
from .host_memory import host_memory
from .parameters.lora import LoraAdapter, LoraMatrix, load_lora
from .plan import intervention_bytes
from .strict_json import show

if TYPE_CHECKING:
    from .engine import Engine

#: The end of a parameter's name -> what the native model calls its matrix.
_MATRICES = {
    "q_proj.weight": "q",
    "k_proj.weight": "k",
    "v_proj.weight": "v",
    "o_proj.weight": "attention_out",
    "router.weight": "router",
    "gate_up_proj": "gate_up",
    "down_proj": "down",
}


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter on the model's device.

    rank: the largest of its matrices; nbytes: of device memory; parameters: the names of those it adds to
    key: tells it from all others, also when it is gone
    """

    name: str
    path: str
    rank: int
    nbytes: int
    parameters: tuple[str, ...]
    native: Any
    key: object = field(default_factory=object)


class Adapters(Mapping[str, LoadedAdapter]):
    """The loaded adapters by name. Any thread may use them; `SamplingParams(adapter=name)` chooses one.

    Rows of requests without an adapter are computed bit for bit as if none were loaded. An adapter adds
    B A x, in float32, to what the model's own matrix gives, so that edits of the model keep their effect.
    """

    def __init__(self, config: ModelConfig, engine: Callable[[], Engine]):
        self._config, self._engine = config, engine
        self._loaded: dict[str, LoadedAdapter] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> LoadedAdapter:
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._loaded))

    def __len__(self) -> int:
        return len(self._loaded)

    def load(self, name: str, folder: str | Path) -> LoadedAdapter:
        """Load one of PEFT's adapters (see parameters/lora.py for which) under a name.

        Raises RequestError for a name that is taken, CheckpointError for a folder that is no adapter of this
        model, GptossError when the device has no room for it.
        """
        if not isinstance(name, str) or not name.strip() or len(name) > 256:
            raise RequestError(
                f"an adapter's name must be a text of up to 256 characters, found {show(name)}"
            )
        self._check_free(name)
        from . import _native

        adapter = load_lora(folder, self._config)
        model = self._engine().model
        self._check_room(adapter, model)
        native = _native.Adapter(model, [self._place(matrix) for matrix in adapter.matrices])
        names = tuple(matrix.name for matrix in adapter.matrices)
        found = LoadedAdapter(name, str(folder), native.rank, native.nbytes, names, native)
        with self._lock:
            self._check_free(name)
            self._loaded[name] = found
        return found

    def drop(self, name: str) -> None:
        """Forget one. Requests under way keep it; after the last of them its memory is free at the next step.

        Raises RequestError when there is none of that name.
        """
        with self._lock:
            self.find(name)
            gone = self._loaded.pop(name)
        engine = self._engine()
        engine.between_steps(lambda: engine.extras.leave(gone))

    def let_go(self) -> None:
        """Forget all, with the model."""
        with self._lock:
            self._loaded = {}

    def find(self, name: str | None) -> LoadedAdapter | None:
        """The one of a request; RequestError when there is none of that name."""
        if name is None:
            return None
        found = self._loaded.get(name)
        if found is None:
            known = ", ".join(sorted(self._loaded)) or "none"
            raise RequestError(
                f"adapter {show(name)} is not loaded, the loaded ones are: {known}; load it first"
            )
        return found

    def _check_free(self, name: str) -> None:
        if name in self._loaded:
            raise RequestError(
                f"an adapter {show(name)} is loaded already; drop it first, or choose another name"
            )

    def _check_room(self, adapter: LoraAdapter, model: Any) -> None:
        """A host promises memory that it does not have; a device says no by itself."""
        rank = max(matrix.a.shape[-2] for matrix in adapter.matrices)
        need = sum(matrix.a.nbytes + matrix.b.nbytes for matrix in adapter.matrices)
        need += intervention_bytes(self._config, 0, model.max_rows, rank)
        memory = host_memory() if model.backend.is_host else None
        if memory is not None and need > memory.available:
            raise GptossError(
                f"an adapter of rank {rank} takes {need:,} bytes beside steps of {model.max_rows:,} tokens, "
                f"{memory.available:,} are free; lower max_num_batched_tokens, or use a smaller adapter"
            )

    def _place(self, matrix: LoraMatrix) -> tuple[str, int, np.ndarray, np.ndarray]:
        with np.errstate(over="ignore"):
            b = np.ascontiguousarray(matrix.b.swapaxes(-1, -2) * np.float32(matrix.scale))
        if not np.isfinite(b).all():
            raise CheckpointError(
                f"{matrix.name}: lora_B times its scale {matrix.scale:g} is beyond float32; use an adapter "
                "of smaller numbers"
            )
        if matrix.name == "lm_head.weight":
            return "lm_head", self._config.num_hidden_layers, matrix.a, b
        kind = next(kind for end, kind in _MATRICES.items() if matrix.name.endswith(end))
        return kind, int(matrix.name.split(".")[2]), matrix.a, b
