"""gptoss-native: runs gpt-oss models from their open checkpoints, on the CPU or a GPU, offline.

from gptoss_native import LLM, SamplingParams

llm = LLM("demo")
print(llm.chat([{"role": "user", "content": "What is 4732 + 918?"}])[0].content)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .async_llm import AsyncLLM
    from .capture import Capture
    from .checkpoint import Checkpoint, open_checkpoint
    from .config import ModelConfig
    from .constraints import StructuredOutputsParams
    from .errors import CheckpointError, GptossError, OverloadedError, RequestError
    from .harmony import HarmonyParser, Message, render_conversation
    from .interventions import ExpertControl, SteeringVector
    from .llm import LLM
    from .outputs import (
        ChatCompletionOutput,
        ChatOutput,
        CompletionOutput,
        Logprob,
        RequestOutput,
        ScoreOutput,
        StreamDelta,
        ToolCall,
    )
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer

__all__ = [
    "LLM",
    "AsyncLLM",
    "Capture",
    "ChatCompletionOutput",
    "ChatOutput",
    "Checkpoint",
    "CheckpointError",
    "CompletionOutput",
    "ExpertControl",
    "GptossError",
    "HarmonyParser",
    "Logprob",
    "Message",
    "ModelConfig",
    "OverloadedError",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "ScoreOutput",
    "SteeringVector",
    "StreamDelta",
    "StructuredOutputsParams",
    "Tokenizer",
    "ToolCall",
    "__version__",
    "open_checkpoint",
    "render_conversation",
]

# Modules imported when one of their names is first used: importing the package costs next to nothing.
_MODULES = {
    "async_llm": ("AsyncLLM",),
    "capture": ("Capture",),
    "checkpoint": ("Checkpoint", "open_checkpoint"),
    "config": ("ModelConfig",),
    "constraints": ("StructuredOutputsParams",),
    "errors": ("CheckpointError", "GptossError", "OverloadedError", "RequestError"),
    "harmony": ("HarmonyParser", "Message", "render_conversation"),
    "interventions": ("ExpertControl", "SteeringVector"),
    "llm": ("LLM",),
    "outputs": (
        "ChatCompletionOutput",
        "ChatOutput",
        "CompletionOutput",
        "Logprob",
        "RequestOutput",
        "ScoreOutput",
        "StreamDelta",
        "ToolCall",
    ),
    "sampling": ("SamplingParams",),
    "tokenizer": ("Tokenizer",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
