"""An edit: changes that take effect together, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..errors import RequestError
from ..strict_json import show
from .formats import WriteReport
from .lora import LoraAdapter, load_lora
from .parameter import Parameter
from .store import Overlay, Region, Store
from .tree import Layer, Parameters

#: Rows of a matrix to which an adapter is added at once.
MERGED_ROWS = 4096
LARGEST = float(np.finfo(np.float32).max)


class Edit:
    """Changes in the making: what one writes here the model sees when the `with` block ends, all at once.

    `parameters` and `layers` are those of the model with the changes so far; an exception in the block drops
    them all. Quantising and checking happen as one writes, so that applying is only a copy.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        store: Store,
        begin: Callable[[], None],
        end: Callable[[list[Region] | None], None],
    ):
        self.name, self.report = name, WriteReport()
        self._config, self._store, self._begin, self._end = config, store, begin, end
        self._overlay: Overlay | None = None  # while it is open
        self._parameters: Parameters | None = None

    def __enter__(self) -> Edit:
        if self._overlay is not None:
            raise RequestError(f"the edit {show(self.name)} is open already; end its with block first")
        self._begin()
        try:
            self._overlay = Overlay(self._store)
            self._parameters = Parameters(self._config, self._overlay)
        except BaseException:
            self._end(None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        overlay, self._overlay, self._parameters = self.store, None, None
        regions = overlay.regions
        overlay.close()
        self._end(regions if kind is None else None)

    @property
    def store(self) -> Overlay:
        """Rows as stored, with the changes so far. Raises RequestError outside the block, as all do here."""
        if self._overlay is None:
            raise self._not_open()
        return self._overlay

    @property
    def parameters(self) -> Parameters:
        """Those of the model, with the changes so far."""
        if self._parameters is None:
            raise self._not_open()
        return self._parameters

    @property
    def layers(self) -> list[Layer]:
        """See Parameters.layers."""
        return list(self.parameters.layers)

    def set(self, pattern: str, value: float) -> WriteReport:
        """Make every number of the parameters that fit `pattern` this one."""
        number = _number(value)
        return self.update(pattern, lambda values: np.full_like(values, number))

    def scale(self, pattern: str, factor: float) -> WriteReport:
        """Multiply every number of the parameters that fit `pattern`."""
        number = _number(factor)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused, with its place
            return self.update(pattern, lambda values: values * number)

    def update(self, pattern: str, change: Callable[[Any], Any]) -> WriteReport:
        """Parameter.update of all that fit `pattern` (see Parameters.match). Raises RequestError."""
        return self._add(lambda parameter: parameter.update(change), self.parameters.match(pattern))

    def write(self, name: str, array: Any, **part: Any) -> WriteReport:
        """Parameter.write of the one that `name` names; `part`: rows and expert."""
        return self._add(lambda parameter: parameter.write(array, **part), self.parameters.match(name))

    def merge_lora(self, folder: str | Path, strength: float = 1.0) -> WriteReport:
        """Add a PEFT adapter, times `strength`, to the weights; the report says what rounding did.

        folder: with adapter_config.json and adapter_model.safetensors, see lora.load_lora. Raises
        CheckpointError for an adapter of another model, or of a kind that cannot be merged.
        """
        with self.store.transaction():
            report = self._merge(load_lora(folder, self._config), _number(strength))
        self.report += report
        return report

    def _merge(self, adapter: LoraAdapter, factor: np.float32) -> WriteReport:
        report = WriteReport()
        for matrix in adapter.matrices:
            parameter = self.parameters[matrix.name]
            parts = parameter.experts if ".mlp.experts." in matrix.name else [parameter]
            for expert, part in enumerate(parts):
                a, b = (matrix.a[expert], matrix.b[expert]) if matrix.a.ndim == 3 else (matrix.a, matrix.b)
                for first in range(0, len(b), MERGED_ROWS):
                    rows = slice(first, first + MERGED_ROWS)
                    with np.errstate(over="ignore", invalid="ignore"):  # `write` says where
                        change = np.float32(matrix.scale) * factor * (b[rows] @ a)
                        wanted = part.decode(rows) + change
                    report += part.write(wanted, rows)
        return report

    def _add(self, write: Callable[[Parameter], WriteReport], parameters: list[Parameter]) -> WriteReport:
        report = WriteReport()
        with self.store.transaction():  # a call that fails has written nothing
            for parameter in parameters:
                report += write(parameter)
        self.report += report
        return report

    def _not_open(self) -> RequestError:
        return RequestError(f"the edit {show(self.name)} is not open; write inside its with block")


def _number(value: Any) -> Any:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= LARGEST:
        raise RequestError(f"found {show(value)}, expected a finite number that float32 can hold")
    return np.float32(value)
