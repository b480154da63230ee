"""What one request does to the model on its way: steering vectors, a say in the experts' choice, an adapter.

Other requests of the same batch are computed bit for bit as without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import numpy as np

from .arguments import as_path, new_file, whole
from .checkpoint.safetensors import SafetensorsFile
from .checkpoint.safetensors_writer import TensorSource, write_safetensors
from .config import ModelConfig
from .errors import CheckpointError, RequestError
from .strict_json import show

if TYPE_CHECKING:
    from .adapters import LoadedAdapter


class SteeringVector(Mapping[int, np.ndarray]):
    """Vectors float32 [hidden], by layer, that are added to the residual stream after that layer.

    vectors: layer -> real numbers [hidden]; strength: multiplies all of them

    They are added at every position, prompt and answer. `vector * 2` is a stronger one. Raises RequestError
    for what is not a vector of finite numbers.
    """

    def __init__(self, vectors: Mapping[int, Any], strength: float = 1.0):
        if not isinstance(vectors, Mapping) or not vectors:
            raise RequestError(
                f"a steering vector maps layers to vectors, found {show(vectors)}; pass {{12: array}}"
            )
        factor, self._vectors = _number("strength", strength), {}
        for layer, vector in vectors.items():
            number = whole(layer)
            if number is None or number < 0:
                raise RequestError(
                    f"a steering vector's layers are numbers from 0 on, found {show(layer)}; correct it"
                )
            try:
                with np.errstate(over="ignore"):
                    values = np.array(vector, np.float32) * np.float32(factor)
            except (TypeError, ValueError):
                values = np.full(1, np.nan, np.float32)
            if values.ndim != 1 or not np.isfinite(values).all():
                raise RequestError(
                    f"the steering vector of layer {layer} must be finite numbers in one dimension, found "
                    f"{show(vector)}"
                )
            values.flags.writeable = False
            self._vectors[number] = values
        digest = hashlib.sha256()
        for layer in sorted(self._vectors):
            digest.update(layer.to_bytes(8, "little") + self._vectors[layer].tobytes())
        self._digest = digest.digest()

    def __getitem__(self, layer: int) -> np.ndarray:
        return self._vectors[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def __mul__(self, strength: float) -> SteeringVector:
        return SteeringVector(self._vectors, strength)

    __rmul__ = __mul__

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SteeringVector) and self._digest == other._digest

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, a tensor F32 [hidden] for each layer.

        A regular file of that name is replaced. Raises CheckpointError when it cannot be written.
        """
        sources = [
            TensorSource(f"layer_{layer}", "F32", vector.shape, lambda vector=vector: [vector])
            for layer, vector in self._vectors.items()
        ]
        write_safetensors(new_file(path), sources, metadata={"format": "gptoss-native-steering"})

    @staticmethod
    def load(path: str | Path) -> SteeringVector:
        """What `save` has written. Raises CheckpointError for any other file."""
        file, vectors = SafetensorsFile(as_path(path)), {}
        for name, info in file.tensors.items():
            layer = name.removeprefix("layer_")
            if (
                not (name != layer and layer.isdecimal() and layer.isascii() and len(layer) < 6)
                or info.dtype != "F32"
            ):
                raise CheckpointError(
                    f"{path}: tensor {show(name)} ({info.dtype}) is no steering vector; write it with "
                    "SteeringVector.save"
                )
            vectors[int(layer)] = np.array(file.array(info))
        try:
            return SteeringVector(vectors)
        except RequestError as error:
            raise CheckpointError(f"{path}: is no steering vector ({error}); save it again") from None


@dataclass(frozen=True)
class ExpertControl:
    """Which experts a request's tokens go to. Raises RequestError for what is no set of experts.

    mask: never chosen; force: always chosen, weighted by their own logits; boost: added to router logits
    layers: where; None: in every layer
    """

    mask: Sequence[int] = ()
    force: Sequence[int] = ()
    boost: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("mask", "force"):
            object.__setattr__(self, name, indices(name, getattr(self, name)))
        boost = self.boost.items() if isinstance(self.boost, Mapping) else self.boost
        try:
            pairs = [(expert, _number("boost", amount)) for expert, amount in boost]
        except (TypeError, ValueError):
            raise RequestError(
                f"boost must map experts to numbers, found {show(self.boost)}; pass {{3: 1.5}}"
            ) from None
        experts = indices("boost", [expert for expert, _ in pairs])
        object.__setattr__(self, "boost", tuple(zip(experts, (amount for _, amount in pairs), strict=True)))
        if self.layers is not None:
            object.__setattr__(self, "layers", indices("layers", self.layers))
        both = set(self.mask) & set(self.force)
        if both:
            raise RequestError(f"expert {min(both)} is both masked and forced; choose one")


def kind_of(intervention: Intervention | None) -> Hashable:
    """Of a task that may have none."""
    return intervention.kind if intervention is not None else None


class LayerChange(NamedTuple):
    """What happens in one layer, as the native model takes it."""

    layer: int
    steering: np.ndarray | None  # float32 [hidden]
    boost: np.ndarray | None  # float32 [experts]
    rank: np.ndarray | None  # int32 [experts]: 1 forced, -1 masked, 0 neither


@dataclass(frozen=True)
class Intervention:
    """All that one request does; equal ones share their place on the device."""

    steering: tuple[SteeringVector, ...] = ()
    experts: tuple[ExpertControl, ...] = ()
    adapter: LoadedAdapter | None = None

    def __bool__(self) -> bool:
        return bool(self.steering or self.experts or self.adapter)

    @property
    def kind(self) -> Hashable:
        """Texts may share keys and values when theirs is equal. It does not keep an adapter loaded."""
        return self.steering, self.experts, self.adapter and self.adapter.key

    def check(self, config: ModelConfig) -> None:
        """Raise RequestError for a layer, an expert or a width that the model does not have."""
        last = config.num_hidden_layers - 1
        layers = [layer for vector in self.steering for layer in vector]
        layers += [layer for control in self.experts for layer in control.layers or ()]
        if layers and max(layers) > last:
            raise RequestError(
                f"layer {max(layers)} is to be changed, the model has layers 0 to {last}; choose others"
            )
        for vector in self.steering:
            for layer, values in vector.items():
                if len(values) != config.hidden_size:
                    raise RequestError(
                        f"the steering vector of layer {layer} has {len(values)} numbers, the model's "
                        "hidden size is "
                        f"{config.hidden_size}; use one made for this model"
                    )
        experts = [e for c in self.experts for e in (*c.mask, *c.force, *(expert for expert, _ in c.boost))]
        if experts and max(experts) >= config.num_local_experts:
            raise RequestError(
                f"expert {max(experts)} is named, the model has experts 0 to "
                f"{config.num_local_experts - 1}; choose others"
            )
        for change in self.layers(config):
            if change.rank is None:
                continue
            left, forced = np.count_nonzero(change.rank >= 0), np.count_nonzero(change.rank > 0)
            if left < config.num_experts_per_tok:
                raise RequestError(
                    f"the masks leave {left} experts of layer {change.layer}, a token goes to "
                    f"{config.num_experts_per_tok}; mask fewer"
                )
            if forced > config.num_experts_per_tok:
                raise RequestError(
                    f"{forced} experts of layer {change.layer} are forced, a token goes to "
                    f"{config.num_experts_per_tok}; force fewer"
                )

    def layers(self, config: ModelConfig) -> list[LayerChange]:
        """What happens in each layer that is changed."""
        found = []
        for layer in range(config.num_hidden_layers):
            vectors = [vector[layer] for vector in self.steering if layer in vector]
            steering = np.sum(vectors, axis=0, dtype=np.float32) if vectors else None
            controls = [c for c in self.experts if c.layers is None or layer in c.layers]
            boost = rank = None
            if controls:
                boost = np.zeros(config.num_local_experts, np.float32)
                rank = np.zeros(config.num_local_experts, np.int32)
                for control in controls:
                    for expert, amount in control.boost:
                        boost[expert] += amount
                    rank[list(control.force)] = 1
                for control in controls:  # of two, the one that forbids
                    rank[list(control.mask)] = -1
            if vectors or controls:
                found.append(LayerChange(layer, steering, boost, rank))
        return found


class Slots:
    """Which intervention is where in the native model's tables; those not used for longest make room."""

    def __init__(self, model: Any, config: ModelConfig, count: int):
        self._model, self._config = model, config
        self._free = list(range(count))
        self._slot: dict[Intervention, int] = {}  # used last comes last
        self._leaving: WeakSet[LoadedAdapter] = WeakSet()  # those that requests under way still hold

    def rows(self, interventions: Sequence[Intervention | None], counts: Sequence[int]) -> np.ndarray | None:
        """int32 [rows]: the slot of each row of a step, -1 for none; None when no row has one.

        interventions, counts: of each sequence of the step, at most as many different ones as there are slots
        """
        if self._leaving:
            self._sweep({each for each in interventions if each})
        if not any(interventions):
            return None
        wanted = {each for each in interventions if each}
        slots = [self._place(each, wanted) if each else -1 for each in interventions]
        return np.repeat(np.array(slots, np.int32), counts)

    def leave(self, adapter: LoadedAdapter) -> None:
        """Let go of an adapter once no step uses it."""
        self._leaving.add(adapter)
        self._sweep(set())

    def _sweep(self, wanted: set[Intervention]) -> None:
        """Empty the slots of adapters that leave; a request that was not in this step puts its own back."""
        for intervention, slot in list(self._slot.items()):
            if intervention.adapter in self._leaving and intervention not in wanted:
                self._model.set_intervention(slot, [], None)
                del self._slot[intervention]
                self._free.append(slot)

    def _place(self, intervention: Intervention, wanted: set[Intervention]) -> int:
        slot = self._slot.pop(intervention, None)
        if slot is None:
            if self._free:
                slot = self._free.pop()
            else:
                slot = self._slot.pop(next(each for each in self._slot if each not in wanted))
            adapter = intervention.adapter
            try:
                layers = [tuple(each) for each in intervention.layers(self._config)]
                self._model.set_intervention(slot, layers, adapter.native if adapter else None)
            except BaseException:
                self._free.append(slot)  # half filled, and of no row until somebody fills it
                raise
        self._slot[intervention] = slot
        return slot


def intervention_of(steering: Any, experts: Any, adapter: LoadedAdapter | None = None) -> Intervention:
    """From what SamplingParams takes: one or several of each, or None; RequestError for anything else."""
    return Intervention(
        _several("steering", steering, SteeringVector), _several("experts", experts, ExpertControl), adapter
    )


def _several(name: str, given: Any, kind: type) -> tuple[Any, ...]:
    items = () if given is None else (given,) if isinstance(given, kind) else given
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, kind) for item in items):
        raise RequestError(
            f"{name} must be a {kind.__name__} or a list of them, found {show(given)}; pass one"
        )
    return tuple(items)


def indices(name: str, values: Any) -> tuple[int, ...]:
    """Whole numbers from 0 on, such as layers, in a list or a NumPy array; RequestError for anything else."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist()
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, (Sequence, set, frozenset, range)):
        raise RequestError(f"{name} must be a list of numbers from 0 on, found {show(values)}; correct it")
    found = [whole(value) for value in values]
    for value, number in zip(values, found, strict=True):
        if number is None or number < 0:
            raise RequestError(
                f"{name} must be a list of numbers from 0 on, found {show(value)} in it; correct it"
            )
    return tuple(found)


def _number(name: str, value: Any) -> float:
    fits = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not fits or not abs(value) <= 1e6:
        raise RequestError(f"{name} must be a number of at most 1e6, found {show(value)}; correct it")
    return float(value)
