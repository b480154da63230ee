"""What one request sees of the model's inside: the residual stream, the router's choices, attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np

from .config import ModelConfig
from .errors import RequestError
from .host_memory import host_memory
from .interventions import indices
from .parameters.formats import decode_bf16
from .strict_json import show

Layers = Sequence[int] | bool


@dataclass(frozen=True)
class Capture:
    """What to keep of a request's way through the model; each a list of layers, or True for all of them.

    residual: the residual stream after the layer; router: the experts chosen, and their weights
    attention: how much each token looks at each one before it; its size grows with the square of the tokens
    """

    residual: Layers = ()
    router: Layers = ()
    attention: Layers = ()

    def __post_init__(self) -> None:
        for name in ("residual", "router", "attention"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                object.__setattr__(self, name, indices(name, value))

    def layers(self, config: ModelConfig) -> WatchedLayers:
        """The layers as numbers. Raises RequestError for one that the model does not have."""
        count = config.num_hidden_layers
        found = []
        for name in ("residual", "router", "attention"):
            value = getattr(self, name)
            chosen = tuple(range(count)) if value is True else value or ()
            if chosen and max(chosen) >= count:
                raise RequestError(
                    f"{name} of layer {max(chosen)} is wanted, the model has layers 0 to {count - 1}; "
                    "correct it"
                )
            found.append(tuple(dict.fromkeys(chosen)))
        return WatchedLayers(*found)


class WatchedLayers(NamedTuple):
    """Layers of which the native model keeps something, as it takes them; queries: for attention."""

    residual: tuple[int, ...] = ()
    router: tuple[int, ...] = ()
    queries: tuple[int, ...] = ()


class RouterChoice(NamedTuple):
    """expert: int32 [tokens, chosen], by falling logit; weight: float32 [tokens, chosen], summing to 1."""

    expert: np.ndarray
    weight: np.ndarray


@dataclass
class Captured:
    """What was captured, by layer. tokens: those of prompt and answer without the last, which is never run.

    residual: float32 [tokens, hidden]; router: RouterChoice
    attention: float32 [tokens, heads, tokens]: how much a token (first axis) looks at another; what is
        missing to a sum of 1 went to the head's sink
    """

    residual: dict[int, np.ndarray] = field(default_factory=dict)
    router: dict[int, RouterChoice] = field(default_factory=dict)
    attention: dict[int, np.ndarray] = field(default_factory=dict)


def captured_bytes(layers: WatchedLayers, config: ModelConfig, tokens: int, rows: int) -> int:
    """Most bytes that a Recorder takes for a sequence of `tokens` tokens, in steps of up to `rows`.

    All parts, and the largest of them once more as they are joined; or beside them what attention of one step
    is computed from: scores, weights and a mask, and every key for each head of queries.
    """
    heads, count = config.num_attention_heads, config.num_experts_per_tok
    kinds = [
        (len(layers.residual), config.hidden_size),
        (2 * len(layers.router), count),
        (len(layers.queries), heads * tokens),
    ]
    kept = sum(number * width for number, width in kinds) * tokens
    joined = max((width * tokens for number, width in kinds if number), default=0)
    step = min(rows, tokens)
    computed = heads * tokens * (4 * step + 2 * config.head_dim) if layers.queries else 0
    return 4 * (kept + max(joined, computed))


class Recorder:
    """Puts together what the steps of one request show. Used on the engine's thread.

    tokens: of the longest sequence that can come of it
    Raises RequestError when that is more than memory has.
    """

    def __init__(self, capture: Capture, config: ModelConfig, model: Any, cache: Any, tokens: int):
        self.layers = capture.layers(config)
        self._config, self._model, self._cache = config, model, cache
        self._parts: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = {}
        self._captured: Captured | None = None
        need, memory = captured_bytes(self.layers, config, tokens, model.max_rows), host_memory()
        with _recorders_lock:
            promised = sum(other.promised for other in _recorders)
        self.promised = need  # bytes that it may still take
        if memory is not None and need > memory.available - promised:
            raise RequestError(
                f"what is to be captured of {tokens:,} tokens takes {need:,} bytes, "
                f"{max(memory.available - promised, 0):,} are free; capture fewer layers, or lower max_tokens"
            )
        with _recorders_lock:
            _recorders.add(self)

    def take(
        self, start: int, watched: dict, rows: slice, full: Sequence[int], window: Sequence[int]
    ) -> None:
        """A step has run this sequence's tokens from `start` on as `rows`; full, window: its pages."""
        for layer in self.layers.residual:
            self._keep("residual", layer, start, watched["residual", layer][rows])
        for layer in self.layers.router:
            self._keep("expert", layer, start, watched["expert", layer][rows])
            self._keep("routing_weight", layer, start, watched["routing_weight", layer][rows])
        for layer in self.layers.queries:
            pages = window if self._config.is_sliding(layer) else full
            self._keep(
                "attention", layer, start, self._attend(layer, start, watched["queries", layer][rows], pages)
            )

    def captured(self) -> Captured:
        """All of it, once the request has ended; what ran twice counts as it ran last."""
        if self._captured is not None:
            return self._captured
        self.promised = 0
        self._captured = found = Captured()
        for layer in self.layers.residual:
            found.residual[layer] = self._joined("residual", layer)
        for layer in self.layers.router:
            found.router[layer] = RouterChoice(
                self._joined("expert", layer), self._joined("routing_weight", layer)
            )
        for layer in self.layers.queries:
            found.attention[layer] = self._joined("attention", layer)
        return found

    def _keep(self, what: str, layer: int, start: int, array: np.ndarray) -> None:
        self._parts.setdefault((what, layer), []).append((start, array.copy()))
        self.promised = max(self.promised - array.nbytes, 0)

    def _joined(self, what: str, layer: int) -> np.ndarray:
        parts = self._parts.pop((what, layer), [])  # one layer at a time is there twice
        if not parts:
            return np.empty((0,), np.float32)
        tokens = max(start + len(array) for start, array in parts)
        first = parts[0][1]
        shape = (tokens, first.shape[1], tokens) if what == "attention" else (tokens, *first.shape[1:])
        whole = np.zeros(shape, first.dtype)
        for start, array in parts:
            whole[start : start + len(array), ..., : array.shape[-1]] = array
        return whole

    def _attend(self, layer: int, start: int, queries: np.ndarray, pages: Sequence[int]) -> np.ndarray:
        """float32 [rows, heads, end]: the softmax of paged_attention, from its own queries and keys."""
        config, size, end = self._config, self._cache.page_size, start + len(queries)
        keys = np.zeros((len(pages) * size, config.num_key_value_heads, config.head_dim), np.float32)
        held = [place for place in range(-(-end // size)) if pages[place] >= 0]
        found = self._cache.read_keys(layer, [pages[place] for place in held])
        for place, page in zip(held, found, strict=True):
            keys[place * size : (place + 1) * size] = page.transpose(1, 0, 2)
        keys = np.repeat(keys[:end], config.num_attention_heads // config.num_key_value_heads, axis=1)
        scores = np.einsum("rhd,khd->rhk", queries, keys, optimize=True) * np.float32(config.head_dim**-0.5)
        distance = np.arange(start, end)[:, None] - np.arange(end)
        visible = distance >= 0
        if config.is_sliding(layer):
            visible &= distance < config.sliding_window
        scores = np.where(visible[:, None], scores, -np.inf)
        sinks = decode_bf16(
            self._model.read_rows(f"model.layers.{layer}.self_attn.sinks", 0, config.num_attention_heads)
        ).reshape(1, -1, 1)
        largest = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
        weights = np.exp(scores - largest)
        return weights / (weights.sum(axis=-1, keepdims=True) + np.exp(sinks - largest))


#: Those of requests that may still grow.
_recorders: WeakSet[Recorder] = WeakSet()
_recorders_lock = Lock()


class ExpertUsage:
    """Counts which experts tokens go to, over all requests, from when it is made until `stop`.

    counts: int64 [layers, experts]; tokens: how many went through each layer, those of prompts included
    router_entropy: float64 [layers], in bits: of the weights that the router gave a token's experts, on
        average: 0 where one expert got all, log2(experts per token) where all got the same
    """

    def __init__(self, config: ModelConfig, stop: Callable[[ExpertUsage], None]):
        self.counts = np.zeros((config.num_hidden_layers, config.num_local_experts), np.int64)
        self._router_bits = np.zeros(config.num_hidden_layers)  # summed over tokens
        self.tokens, self._stop = 0, stop

    def take(self, watched: dict) -> None:
        """On the engine's thread: a step has run."""
        for layer, row in enumerate(self.counts):
            row += np.bincount(watched["expert", layer].reshape(-1), minlength=len(row))
            self._router_bits[layer] += _bits(watched["routing_weight", layer].astype(np.float64)).sum()
        self.tokens += len(watched["expert", 0])

    @property
    def share(self) -> np.ndarray:
        """float64 [layers, experts]: of a layer's choices, how many fell on each expert; rows sum to 1."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    @property
    def entropy(self) -> np.ndarray:
        """float64 [layers], of use, in bits: log2(experts) where all are used alike, 0 where one alone is."""
        return _bits(self.share)

    @property
    def router_entropy(self) -> np.ndarray:
        """See above."""
        return self._router_bits / max(self.tokens, 1)

    def stop(self) -> None:
        """Count no more; the numbers stay."""
        self._stop(self)

    def __enter__(self) -> ExpertUsage:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _bits(shares: np.ndarray) -> np.ndarray:
    """Entropy of each row of shares."""
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=-1)


def checked_capture(capture: Any) -> Capture | None:
    """A Capture or None; RequestError for anything else."""
    if not isinstance(capture, (Capture, type(None))):
        raise RequestError(f"capture must be a Capture, found {show(capture)}; pass Capture(residual=[…])")
    return capture
