"""What torch takes for dense products, where it is there."""

from __future__ import annotations

import importlib.util


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
