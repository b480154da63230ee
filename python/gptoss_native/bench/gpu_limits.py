"""What a GPU can do at most, measured: bytes copied by its driver, and bf16 products where there is torch.

The package needs no torch; whoever has it gets the arithmetic peak of the vendor's own library.
"""

from __future__ import annotations

import ctypes
import importlib.util
from importlib import import_module

from .report import Line

COPY_BYTES = 2 << 30
MATRIX = 8192
TRIES = 5


def measure_gpu() -> list[Line]:
    """ "copy bandwidth", which counts bytes read and written, and "peak bf16" where torch can tell."""
    found = [Line("copy bandwidth", "B/s", _driver_copy(), "more")]
    if importlib.util.find_spec("torch") is not None:
        found.append(Line("peak bf16", "op/s", _products(), "more"))
    return found


def _products() -> list[float]:
    torch = import_module("torch")
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda").bfloat16() for _ in range(2))
    times, rates = 10, []
    a @ b
    for _ in range(TRIES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            a @ b
        end.record()
        end.synchronize()
        rates.append(times * 2 * MATRIX**3 / (begin.elapsed_time(end) * 1e-3))
    del a, b
    torch.cuda.empty_cache()
    return rates


def _driver_copy() -> list[float]:
    """Bytes a second of copies on the device, by the driver's own interface."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments) -> None:
        error = getattr(cuda, name)(*arguments)
        if error:
            raise RuntimeError(f"{name} failed with CUDA error {error}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxPushCurrent_v2", context)
    blocks, events = [ctypes.c_uint64(), ctypes.c_uint64()], [ctypes.c_void_p(), ctypes.c_void_p()]
    try:
        for block, event in zip(blocks, events, strict=True):
            call("cuMemAlloc_v2", ctypes.byref(block), ctypes.c_size_t(COPY_BYTES))
            call("cuEventCreate", ctypes.byref(event), 0)
        rates, elapsed = [], ctypes.c_float()
        for _ in range(TRIES + 1):
            call("cuEventRecord", events[0], None)
            for _ in range(10):
                call("cuMemcpyDtoDAsync_v2", blocks[0], blocks[1], ctypes.c_size_t(COPY_BYTES), None)
            call("cuEventRecord", events[1], None)
            call("cuEventSynchronize", events[1])
            call("cuEventElapsedTime", ctypes.byref(elapsed), events[0], events[1])
            rates.append(10 * 2 * COPY_BYTES / (elapsed.value * 1e-3))
        return rates[1:]
    finally:
        for block in blocks:
            if block.value:
                cuda.cuMemFree_v2(block)
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        cuda.cuDevicePrimaryCtxRelease_v2(device)
