"""What a model can run on here."""

from __future__ import annotations

import logging
from typing import Any

from .errors import RequestError
from .host_memory import HostMemory, host_memory
from .strict_json import show

#: What a caller may name. Builds for the tests have a simulated GPU, "simt", too.
DEVICES = ("cpu", "cuda")
#: Of a GPU's memory, what weights, cache and activations may take; vLLM's default.
GPU_MEMORY_UTILIZATION = 0.9


def device_for(device: Any) -> str:
    """The device meant by a name or "auto": a usable GPU, else the CPU.

    Raises RequestError for one that is unknown or cannot be used, saying why and what to do.
    """
    from . import _native

    check_known(device)
    if device == "auto":
        if fallback_note():
            logging.getLogger("gptoss_native").warning("running on the CPU: %s", fallback_note())
        return "cpu" if gpu_problem() else "cuda"
    problem = _native.device_problem(device)
    if problem:
        raise RequestError(f"device is {show(device)}, but {problem}")
    return device


def check_known(device: Any) -> None:
    """Raise RequestError for something that is no device's name."""
    from . import _native

    if not isinstance(device, str) or device not in {"auto", *DEVICES, *_native.devices()}:
        raise RequestError(f"device is {show(device)}, expected auto, {' or '.join(DEVICES)}")


def gpu_problem() -> str:
    """Why no GPU can be used, and what to do about it; empty when one can."""
    from . import _native

    return _native.device_problem("cuda")


def fallback_note() -> str:
    """Why "auto" means the CPU although this build has CUDA; empty otherwise."""
    from . import _native

    return gpu_problem() if "cuda" in _native.devices() else ""


def gpu_memory(utilization: float) -> HostMemory:
    """What of the first GPU's memory may be taken now, when a share of `utilization` of it may be in use."""
    from . import _native

    return _share(_native.Backend(device="cuda").memory, utilization)


def device_memory(backend: Any, utilization: float) -> HostMemory | None:
    """What a model may take of the memory its backend computes in: of a GPU's a share, of the host's all."""
    return host_memory() if backend.memory is None else _share(backend.memory, utilization)


def _share(memory: tuple[int, int], utilization: float) -> HostMemory:
    total, free = memory
    return HostMemory(total, max(0, int(free - (1.0 - utilization) * total)))
