"""Finding parameters: by name, by pattern, and along the model's structure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import translate

from ..checkpoint.tensor_names import BLOCK_VALUES, TensorSpec
from ..config import ModelConfig
from ..errors import RequestError
from ..strict_json import show
from .parameter import Parameter
from .store import Store, specs_of


class Parameters(Mapping[str, Parameter]):
    """Every parameter by its checkpoint name, in the order of the forward pass.

    An expert's part has a name too, model.layers.7.mlp.experts.3.down_proj, that iteration leaves out. Names
    may be written short: without `model.`, `mlp.` and `self_attn.`. `match` takes patterns.
    """

    def __init__(self, config: ModelConfig, store: Store):
        self._config, self._store = config, store
        self._found = {name: _parameter(store, name, specs) for name, specs in _logical(config).items()}
        self._short = {short_name(name): name for name in self._found}

    def __getitem__(self, name: str) -> Parameter:
        """The parameter of that name; KeyError, with the nearest names, when there is none."""
        if not isinstance(name, str):
            raise KeyError(f"{show(name)} is no name of a parameter; pass a text")
        plain = re.sub(r"(experts\.\w+_proj)_(?:blocks|scales)$", r"\1", name)
        expert = re.fullmatch(r"(.*\bexperts\.)(\d{1,4})\.(\w+)", plain)
        whole = self._short.get(short_name(expert[1] + expert[3] if expert else plain))
        if whole is None or (expert and int(expert[2]) >= self._config.num_local_experts):
            near = difflib.get_close_matches(short_name(plain), self._short, 3)
            raise KeyError(
                f"no parameter is called {show(name)}" + (f"; the nearest are {', '.join(near)}" * bool(near))
            )
        found = self._found[whole]
        return found.experts[int(expert[2])] if expert else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def match(self, pattern: str) -> list[Parameter]:
        """Those whose names, long or short, fit a pattern with * ? [seq], e.g. "layers.*.router.bias".

        Where none does, experts' parts are looked at: "layers.7.experts.3.*". Raises RequestError if none
        fits either.
        """
        if not isinstance(pattern, str):
            raise RequestError(
                f"a pattern must be a text, found {show(pattern)}; pass e.g. layers.*.router.bias"
            )
        if not re.search(r"[*?\[]", pattern):
            try:
                return [self[pattern]]
            except KeyError as error:
                raise RequestError(str(error.args[0])) from None
        fits = re.compile(translate(pattern)).match
        found = [p for name, p in self._found.items() if fits(name) or fits(short_name(name))]
        if not found:
            parts = (e for name, p in self._found.items() if ".experts." in name for e in p.experts)
            found = [part for part in parts if fits(part.name) or fits(short_name(part.name))]
        if not found:
            raise RequestError(
                f"no parameter fits {show(pattern)}; list the names with llm.parameters or `inspect`"
            )
        return found

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers, as objects."""
        return [Layer(self, number) for number in range(self._config.num_hidden_layers)]


class Layer:
    """One layer: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `router` (each with `weight` and `bias`), `sinks`,
    `input_layernorm`, `post_attention_layernorm`, `gate_up_proj`, `down_proj`, their `_bias`, and
    `experts[i]`."""

    def __init__(self, parameters: Parameters, number: int):
        self._at = lambda name: parameters[f"model.layers.{number}.{name}"]
        self._experts = parameters._config.num_local_experts
        self.q_proj, self.k_proj = self._linear("self_attn.q_proj"), self._linear("self_attn.k_proj")
        self.v_proj, self.o_proj = self._linear("self_attn.v_proj"), self._linear("self_attn.o_proj")
        self.router = self._linear("mlp.router")
        self.sinks = self._at("self_attn.sinks")
        self.input_layernorm = self._at("input_layernorm.weight")
        self.post_attention_layernorm = self._at("post_attention_layernorm.weight")
        self.gate_up_proj, self.down_proj = (
            self._at("mlp.experts.gate_up_proj"),
            self._at("mlp.experts.down_proj"),
        )
        self.gate_up_proj_bias = self._at("mlp.experts.gate_up_proj_bias")
        self.down_proj_bias = self._at("mlp.experts.down_proj_bias")

    @property
    def experts(self) -> Sequence[Expert]:
        """The experts, as objects."""
        return [Expert(self, number) for number in range(self._experts)]

    def _linear(self, name: str) -> Linear:
        return Linear(self._at(name + ".weight"), self._at(name + ".bias"))


class Linear:
    """weight [out, in] and bias [out]."""

    def __init__(self, weight: Parameter, bias: Parameter):
        self.weight, self.bias = weight, bias


class Expert:
    """One expert: gate_up_proj [2 * inner, hidden], rows gate, up, gate, up; down_proj [hidden, inner]."""

    def __init__(self, layer: Layer, number: int):
        self.gate_up_proj = layer.gate_up_proj._expert(number)
        self.gate_up_proj_bias = layer.gate_up_proj_bias._expert(number)
        self.down_proj = layer.down_proj._expert(number)
        self.down_proj_bias = layer.down_proj_bias._expert(number)


def short_name(name: str) -> str:
    """layers.7.router.bias of model.layers.7.mlp.router.bias."""
    return name.removeprefix("model.").replace(".self_attn.", ".").replace(".mlp.", ".")


def _logical(config: ModelConfig) -> dict[str, list[TensorSpec]]:
    """Name of a parameter -> the tensors in which it is stored: itself, or blocks and scales."""
    found: dict[str, list[TensorSpec]] = {}
    for name, spec in specs_of(config).items():
        found.setdefault(re.sub(r"_(blocks|scales)$", "", name), []).append(spec)
    return found


def _parameter(store: Store, name: str, specs: list[TensorSpec]) -> Parameter:
    if len(specs) == 1:
        return Parameter(store, name, "BF16", specs[0].shape, (name,))
    experts, rows, blocks = specs[1].shape
    return Parameter(
        store, name, "MXFP4", (experts, rows, blocks * BLOCK_VALUES), (specs[0].name, specs[1].name)
    )
