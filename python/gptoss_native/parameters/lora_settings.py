"""What an adapter_config.json of PEFT says that changes what the adapter's matrices mean.

Source: PEFT 0.21, tuners/lora/config.py and utils/other.py. What is not known here and not at rest is
refused: an adapter of a kind that nobody has heard of must not pass for a plain one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..strict_json import show

#: Settings that do not change what the saved matrices add to the model, whatever their value.
_HARMLESS = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
        "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
        "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
        "target_modules", "target_parameters", "task_type",
    }
)  # fmt: skip
#: Ways to begin a training that leave the model's own weights as they are.
_INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")
#: Names with wildcards: a few, as many could take for ever to match.
_PATTERN = re.compile(r"(?:[\w-]|\\?\.|\\d\+|\.[*+])+")
_WILDCARD = re.compile(r"\\d\+|\.[*+]")
MOST_WILDCARDS, MOST_PATTERNS = 3, 512


class LoraSettings:
    """Scales of an adapter's matrices. Raises CheckpointError for one that is no plain LoRA."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        if settings.get("peft_type") != "LORA":
            raise CheckpointError(
                f"{folder}: peft_type is {show(settings.get('peft_type'))}, expected 'LORA'"
            )
        known = dict(settings)
        for name in ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", *_HARMLESS):
            known.pop(name, None)
        if known.pop("bias", None) not in (None, False, "none"):
            raise _unsupported(folder, "bias", settings["bias"], "'none'")
        start = known.pop("init_lora_weights", None)
        if not any(start is each or (isinstance(start, str) and start == each) for each in _INITIALISATIONS):
            expected = "true, false or " + ", ".join(repr(e) for e in _INITIALISATIONS if isinstance(e, str))
            raise _unsupported(folder, "init_lora_weights", start, expected)
        for name, value in known.items():
            if value not in (None, False, "") and value != [] and value != {}:
                raise _unsupported(folder, name, value, "adapters without it")
        rslora = settings.get("use_rslora")
        if not isinstance(rslora, (bool, type(None))):
            raise CheckpointError(
                f"{folder}: use_rslora must be true or false, found {show(rslora)}; save the adapter again"
            )
        self._by_root = bool(rslora)
        self._targets = settings.get("target_parameters")
        patterns = settings.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS:
            raise CheckpointError(
                f"{folder}: alpha_pattern must be an object of at most {MOST_PATTERNS} entries, found "
                f"{show(patterns)}; save the adapter again"
            )
        self._alpha = _number(folder, "lora_alpha", settings.get("lora_alpha"))
        self._alphas = [
            (_compiled(folder, pattern), _number(folder, "alpha_pattern", alpha))
            for pattern, alpha in patterns.items()
        ]

    def scale(self, module: str, parameter: str, rank: int) -> float:
        """What multiplies B A. parameter: the tensor's name in the module, such as weight or gate_up_proj."""
        key = f"{module}.{parameter}" if self._is_target_parameter(module, parameter) else module
        alpha = next((alpha for fits, alpha in self._alphas if fits.match(key)), self._alpha)
        return alpha / sqrt(rank) if self._by_root else alpha / rank

    def _is_target_parameter(self, module: str, parameter: str) -> bool:
        """PEFT calls those by the tensor's name, and linear layers by the module's."""
        if parameter != "weight" or module.endswith(".router"):  # neither is in a linear layer
            return True
        names = self._targets if isinstance(self._targets, list) else []
        full = f"{module}.{parameter}"
        return any(isinstance(name, str) and f".{full}".endswith(f".{name}") for name in names)


def _compiled(folder: Path, pattern: str) -> re.Pattern[str]:
    """PEFT matches the end of a name, from the beginning of one of its parts."""
    if not _PATTERN.fullmatch(pattern) or len(_WILDCARD.findall(pattern)) > MOST_WILDCARDS:
        raise CheckpointError(
            f"{folder}: alpha_pattern has {show(pattern)}, expected names with at most {MOST_WILDCARDS} of "
            r".* .+ and \d+ in them; merge it with PEFT and convert the result (gptoss-native convert)"
        )
    return re.compile(rf"(?:.*\.)?(?:{pattern})$")


def _number(folder: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise CheckpointError(
            f"{folder}: {name} must be a number, found {show(value)}; save the adapter again"
        )
    return float(value)


def _unsupported(folder: Path, name: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: {name} is {show(value)}, only {expected} is supported; merge it with PEFT and convert "
        "the result (gptoss-native convert)"
    )
