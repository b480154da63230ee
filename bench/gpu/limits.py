"""What this GPU can do at most, measured: bytes copied and bf16 products, by torch where it is there."""

from __future__ import annotations

import ctypes
import importlib.util

import numpy as np

from bench.ops.harness import Limits

COPY_BYTES = 2 << 30
MATRIX = 8192


def measure_limits() -> Limits:
    """Copy bandwidth counts bytes read and written. Without torch nobody measures the products."""
    if importlib.util.find_spec("torch") is None:
        return Limits(_driver_copy())
    import torch

    def seconds(work, times: int) -> float:
        work()
        best = float("inf")
        for _ in range(3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(times):
                work()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) * 1e-3 / times)
        return best

    def copy() -> float:
        source = torch.empty(COPY_BYTES // 2, dtype=torch.bfloat16, device="cuda")
        target = torch.empty_like(source)
        return 2 * COPY_BYTES / seconds(lambda: target.copy_(source), 10)

    def products() -> float:
        a, b = (torch.randn(MATRIX, MATRIX, device="cuda").bfloat16() for _ in range(2))
        return 2 * MATRIX**3 / seconds(lambda: a @ b, 10)

    found = Limits(copy(), products())
    torch.cuda.empty_cache()
    return found


def torch_products(shapes: list[tuple[int, int, int]]) -> dict[str, float]:
    """Microseconds of torch's bf16 product for (rows, width, out), weights in turn; none without torch."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    found = {}
    for rows, width, out in shapes:
        x = torch.randn(rows, width, device="cuda").bfloat16()
        sets = max(1, min(64, (256 << 20) // (2 * width * out)))
        weights = [torch.randn(out, width, device="cuda").bfloat16() for _ in range(sets)]
        for weight in weights:
            x @ weight.T
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        rounds = max(1, 200 // sets)
        begin.record()
        for _ in range(rounds):
            for weight in weights:
                x @ weight.T
        end.record()
        end.synchronize()
        found[f"{rows}x{width}x{out}"] = begin.elapsed_time(end) * 1e3 / (rounds * sets)
        del weights
    torch.cuda.empty_cache()
    return found


def _driver_copy() -> float:
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
        for _ in range(4):
            call("cuEventRecord", events[0], None)
            for _ in range(10):
                call("cuMemcpyDtoDAsync_v2", blocks[0], blocks[1], ctypes.c_size_t(COPY_BYTES), None)
            call("cuEventRecord", events[1], None)
            call("cuEventSynchronize", events[1])
            call("cuEventElapsedTime", ctypes.byref(elapsed), events[0], events[1])
            rates.append(10 * 2 * COPY_BYTES / (elapsed.value * 1e-3))
        return float(np.max(rates[1:]))
    finally:
        for block in blocks:
            if block.value:
                cuda.cuMemFree_v2(block)
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        cuda.cuDevicePrimaryCtxRelease_v2(device)
