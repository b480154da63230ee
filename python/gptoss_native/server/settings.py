"""What `gptoss-native serve` can be told: by flags, by environment variables, by a YAML file, in this order.

One table: each setting's flag is --its-name, its variable GPTOSS_ITS_NAME, its key in the file its name with
dashes or underscores. The names are vLLM's where vLLM has the setting.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..devices import GPU_MEMORY_UTILIZATION
from ..errors import RequestError
from ..speculation import speculative_json
from ..strict_json import show

#: vLLM's flags that gpt-oss needs there; here they are always so. Name -> whether a value follows.
NOT_NEEDED = {
    "--tool-call-parser": True,
    "--enable-auto-tool-choice": False,
    "--reasoning-parser": True,
    "--async-scheduling": False,
    "--no-enable-log-requests": False,
    "--disable-log-requests": False,
    "--trust-remote-code": False,
    "--enable-lora": False,
    "--dtype": True,
}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """All settings; `model_settings` are those of LLM."""

    host: str = _setting("127.0.0.1", "address to listen at; 0.0.0.0: all of this machine")
    port: int = _setting(8000, "port to listen at")
    uds: str | None = _setting(None, "listen at this Unix socket instead of host and port")
    api_key: str | None = _setting(None, "clients must send this key; it protects every path")
    internal_api_key: str | None = _setting(
        None, "opens /v1/internal, where the model's numbers are read and edited, to whoever sends this key"
    )
    served_model_name: str | None = _setting(None, "the model's name for clients; default: the given one")
    lora_modules: tuple | None = _setting(
        None, "PEFT adapters, NAME=FOLDER, several with spaces between; clients ask for NAME as their model"
    )
    max_model_len: int | None = _setting(None, "tokens of prompt and answer together; default: what fits")
    max_num_seqs: int = _setting(64, "answers that are generated at once")
    max_num_batched_tokens: int = _setting(2048, "tokens computed in one step")
    gpu_memory_utilization: float = _setting(GPU_MEMORY_UTILIZATION, "share of a GPU's memory to use")
    kv_cache_dtype: str = _setting("auto", "auto or bfloat16, which is the same")
    device: str = _setting("auto", "auto, cpu or cuda")
    numerics: str = _setting("auto", "auto, exact or fast")
    dense_dtype: str = _setting("bf16", "attention and lm_head: bf16 or, on a CPU, packed or q8")
    threads: int = _setting(0, "of the CPU; 0: one for each core")
    seed: int = _setting(0, "where the seeds of requests without one come from")
    max_logprobs: int = _setting(20, "the most that a request may ask for")
    enable_prefix_caching: bool = _setting(True, "equal beginnings share keys and values (true or false)")
    speculative_config: str | None = _setting(
        None, 'guess coming tokens, as JSON: {"method": "ngram", "num_speculative_tokens": 16}; default: off'
    )
    max_waiting: int = _setting(256, "requests that may wait; more are told to come back (429)")
    max_body_bytes: int = _setting(16 << 20, "the largest request body")
    max_n: int = _setting(16, "the most answers to one prompt")
    drain_seconds: int = _setting(30, "after SIGTERM, how long running answers may go on")

    def model_settings(self) -> dict[str, Any]:
        """For AsyncLLM."""
        names = (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "gpu_memory_utilization",
            "device",
            "numerics",
            "dense_dtype",
            "threads",
            "seed",
            "max_logprobs",
            "enable_prefix_caching",
            "max_waiting",
        )
        found = {name: getattr(self, name) for name in names}
        return {**found, "speculative_config": speculative_json(self.speculative_config)}


_NAMES = {setting.name: setting for setting in fields(Settings)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting; one that is not given leaves its place to the environment and the file."""
    for name, setting in _NAMES.items():
        default = "" if setting.default is None else f"; default: {setting.default}"
        parser.add_argument(
            _flag(name),
            dest=name,
            metavar="X",
            nargs="+" if _kind(setting) == "tuple" else None,
            default=argparse.SUPPRESS,
            help=setting.metadata["help"] + default,
        )
    parser.add_argument(
        "--no-enable-prefix-caching",
        dest="enable_prefix_caching",
        action="store_const",
        const="false",
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; flags and environment win")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help=argparse.SUPPRESS)
    for flag, has_value in NOT_NEEDED.items():
        options: dict[str, Any] = {"nargs": 1} if has_value else {"action": "store_true"}
        parser.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)


def read_settings(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Settings:
    """Flags, else environment, else file, else defaults. Raises RequestError that names the source."""
    given = {
        name: (value, f"{_NAMES[name].name} of {args.config}") for name, value in _file(args.config).items()
    }
    for name in _NAMES:
        variable = f"GPTOSS_{name.upper()}"
        if variable in environment:
            given[name] = environment[variable], variable
        if hasattr(args, name):
            given[name] = getattr(args, name), _flag(name)
    found = Settings(**{name: _read(_NAMES[name], value, source) for name, (value, source) in given.items()})
    if found.kv_cache_dtype not in ("auto", "bfloat16"):
        raise RequestError(
            f"kv-cache-dtype must be auto or bfloat16, found {show(found.kv_cache_dtype)}; use auto"
        )
    if args.tensor_parallel_size != 1:
        raise RequestError(
            f"tensor-parallel-size must be 1, found {args.tensor_parallel_size}: one server uses one device; "
            "start one for each GPU, with CUDA_VISIBLE_DEVICES"
        )
    return found


def notes(args: argparse.Namespace) -> list[str]:
    """Sentences about flags that were given and do nothing."""
    given = [flag for flag in NOT_NEEDED if hasattr(args, flag[2:].replace("-", "_"))]
    return [f"{flag} is not needed: gpt-oss is always served so" for flag in given]


def _kind(setting: Any) -> str:
    return str(setting.type).split(" |")[0]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        import yaml
    except ImportError:
        raise RequestError(f"--config {path} needs PyYAML; install gptoss-native[server]") from None
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())}; correct it") from None
    if not isinstance(found, dict):
        raise RequestError(
            f"{path} must hold settings as `name: value`, found {show(found)}; see serve --help"
        )
    settings = {str(name).replace("-", "_"): value for name, value in found.items() if value is not None}
    unknown = settings.keys() - _NAMES.keys()
    if unknown:
        raise RequestError(f"{path} has {show(min(unknown))}, which is no setting; see serve --help")
    return settings


def _read(setting: Any, value: Any, source: str) -> Any:
    kind = _kind(setting)
    if kind == "tuple":
        return tuple(map(str, value)) if isinstance(value, (list, tuple)) else tuple(str(value).split())
    if isinstance(value, dict):  # of a YAML file
        value = json.dumps(value)
    text = str(value).strip()
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (KeyError, ValueError):
        what = {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
        raise RequestError(f"{source} must be {what}, found {show(value)}; correct it") from None
