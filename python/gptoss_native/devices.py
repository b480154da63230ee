"""The devices that this version can run on."""

from __future__ import annotations

from typing import Any

from .errors import RequestError
from .strict_json import show

DEVICES = ("cpu",)


def device_for(device: Any) -> str:
    """The device meant by a name or "auto". Raises RequestError for one that this version cannot use."""
    if device == "auto":
        return DEVICES[0]
    if device not in DEVICES:
        raise RequestError(
            f"device is {show(device)}, this version has kernels for {', '.join(DEVICES)} only; choose cpu"
        )
    return device
