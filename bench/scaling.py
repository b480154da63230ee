"""What several GPUs, hosts or sockets could reach at most, for docs/scaling.md: python -m bench.scaling

Bytes and products are counted by gptoss_native.bench.costs; the machines are data sheets' numbers, latencies
are guesses. Nothing here has been measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from gptoss_native.bench.costs import EXPERT_OPS, MODELS, Costs, bytes_of, op_costs
from gptoss_native.checkpoint.tensor_names import expected_tensors
from gptoss_native.config import ModelConfig

GPUS, BATCHES, CONTEXT = (1, 2, 4, 8), (1, 8, 32, 64, 256), 1024
TOTALS = (8, 32, 128, 512, 2048)  # sequences on eight GPUs together
BLOCK = 32  # weights that share a scale, and so stay on one GPU
MEMORY_SHARE = 0.9  # of a GPU's, for weights and cache
DRAWS = 2000  # random routings


@dataclass(frozen=True)
class Gpu:
    """bandwidth, link: bytes a second, of the link in one direction. flops: bf16, a second. latency: of an
    all-reduce of next to nothing, seconds."""

    name: str
    memory: float
    bandwidth: float
    flops: float
    link: float
    latency: float


H100 = Gpu("H100 SXM, NVLink", 80e9, 3.35e12, 989e12, 450e9, 6e-6)
LINKS = {  # bytes a second in one direction, seconds of a small all-reduce
    "NVLink 4": (450e9, 6e-6),
    "PCIe 5 x16": (64e9, 12e-6),
    "InfiniBand NDR": (50e9, 20e-6),
}


@dataclass(frozen=True)
class Socket:
    """A CPU socket. link: between two sockets, in one direction. latency: of an all-reduce through memory."""

    name: str
    bandwidth: float
    link: float
    latency: float


SOCKET = Socket("8 channels of DDR5-4800", 8 * 4.8e9 * 8, 62e9, 3e-6)


def exchanged(model: ModelConfig, rows: int, element: int = 2) -> int:
    """Bytes that a step's all-reduces sum: the rows of the residual stream, twice a layer."""
    return 2 * model.num_hidden_layers * rows * model.hidden_size * element


def exchange_seconds(model: ModelConfig, rows: int, parts: int, link: float, latency: float) -> float:
    """Of a step's all-reduces, in a ring: each part sends 2 (t - 1) / t of the bytes."""
    if parts == 1:
        return 0.0
    calls = 2 * model.num_hidden_layers
    return calls * latency + 2 * (parts - 1) / parts * exchanged(model, rows) / link


def uneven(model: ModelConfig, parts: int) -> float:
    """How much more than its share the largest part of an expert is: its width is split between blocks."""
    blocks = model.intermediate_size // BLOCK
    return -(-blocks // parts) * parts / blocks


@cache
def busiest(experts: int, chosen: int, rows: int, parts: int) -> float:
    """Distinct experts on the part with most to read, experts dealt out to parts, over random routings."""
    rng, found = np.random.default_rng(0), []
    for _ in range(max(1, DRAWS // rows)):
        picked = rng.random((rows, experts)).argsort(1)[:, :chosen]
        used = np.zeros(experts, bool)
        used[picked.ravel()] = True
        found.append(used.reshape(parts, -1).sum(1).max())
    return float(np.mean(found))


def seconds(costs: Costs, gpu: Gpu, dense: float, experts: float) -> float:
    """Of a step whose dense ops and expert ops have these shares of their bytes and products on one GPU."""
    total = 0.0
    for op, (nbytes, flops, times) in costs.items():
        share = experts if op in EXPERT_OPS else dense
        total += times * share * max(nbytes / gpu.bandwidth, flops / gpu.flops)
    return total


def tensor_parallel(
    model: ModelConfig, rows: int, parts: int, gpu: Gpu = H100, context: int = CONTEXT
) -> float:
    """Tokens a second: heads, experts' widths and vocabulary split."""
    costs = op_costs(model, rows, context, False)
    exchange = exchange_seconds(model, rows, parts, gpu.link, gpu.latency)
    return rows / (seconds(costs, gpu, 1 / parts, uneven(model, parts) / parts) + exchange)


def expert_parallel(
    model: ModelConfig, rows: int, parts: int, gpu: Gpu = H100, context: int = CONTEXT
) -> float:
    """Tokens a second: heads and vocabulary split, whole experts dealt out."""
    costs = op_costs(model, rows, context, False)
    experts, chosen = model.num_local_experts, model.num_experts_per_tok
    read = busiest(experts, chosen, rows, parts) / busiest(experts, chosen, rows, 1)
    exchange = exchange_seconds(model, rows, parts, gpu.link, gpu.latency)
    return rows / (seconds(costs, gpu, 1 / parts, read) + exchange)


def replicas(model: ModelConfig, rows: int, parts: int, gpu: Gpu = H100, context: int = CONTEXT) -> float:
    """Tokens a second of `parts` copies that share `rows` sequences."""
    each = max(1, rows // parts)
    return parts * each / seconds(op_costs(model, each, context, False), gpu, 1, 1)


def weight_bytes(model: ModelConfig) -> int:
    return sum(spec.nbytes for spec in expected_tensors(model))


def cached_tokens(model: ModelConfig, parts: int, gpu: Gpu = H100) -> float:
    """Of long sequences, that the memory beside the weights holds; keys and values in bf16."""
    full = sum(kind != "sliding_attention" for kind in model.layer_types)
    left = parts * gpu.memory * MEMORY_SHARE - weight_bytes(model)
    return left / (full * 2 * model.key_value_size * 2)


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Markdown."""
    head = list(header)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def rate(value: float) -> str:
    return f"{value:,.0f}"


def latency_table(model: ModelConfig) -> str:
    rows = [[gpus, *(rate(tensor_parallel(model, batch, gpus)) for batch in BATCHES)] for gpus in GPUS]
    return table(["GPUs", *(f"B = {batch}" for batch in BATCHES)], rows)


def exchange_table(model: ModelConfig) -> str:
    """Of eight GPUs: microseconds a step, and of B = 1 and 64 the share of the step."""
    rows = []
    for name, (link, latency) in LINKS.items():
        cells = [name]
        for batch in (1, 64, 256):
            exchange = exchange_seconds(model, batch, 8, link, latency)
            work = seconds(op_costs(model, batch, CONTEXT, False), H100, 1 / 8, uneven(model, 8) / 8)
            cells.append(f"{1e6 * exchange:,.0f} us ({exchange / (exchange + work):.0%})")
        rows.append(cells)
    return table(["link", "B = 1", "B = 64", "B = 256"], rows)


def throughput_table(model: ModelConfig, parts: int = 8) -> str:
    kinds = {"tensor parallel": tensor_parallel, "expert parallel": expert_parallel, "replicas": replicas}
    rows = []
    for name, of in kinds.items():
        rows.append([name, *(rate(of(model, total, parts)) for total in TOTALS)])
    steps = [f"{1e3 * total / tensor_parallel(model, total, parts):.2f}" for total in TOTALS]
    alone = [f"{1e3 * total / replicas(model, total, parts):.2f}" for total in TOTALS]
    rows += [["ms a token, tensor parallel", *steps], ["ms a token, replicas", *alone]]
    return table(["tokens a second", *(f"{total} sequences" for total in TOTALS)], rows)


def prompt_table(model: ModelConfig, length: int = 8192) -> str:
    """Milliseconds of a prompt, its all-reduces after the work of a layer, or hidden behind it."""
    rows = []
    for gpus in GPUS:
        costs = op_costs(model, length, 0, True)
        work = seconds(costs, H100, 1 / gpus, uneven(model, gpus) / gpus)
        exchange = exchange_seconds(model, length, gpus, H100.link, H100.latency)
        rows.append([gpus, *(f"{1e3 * each:.1f}" for each in (work, exchange, max(work, exchange)))])
    return table(["GPUs", "products and bytes", "all-reduces", "at least, together"], rows)


def memory_table() -> str:
    rows = [
        [
            name,
            f"{weight_bytes(model) / 1e9:.1f} GB",
            *(f"{cached_tokens(model, gpus) / 1e6:.1f} M" for gpus in GPUS),
        ]
        for name, model in MODELS.items()
    ]
    return table(["model", "weights", *(f"tokens, {gpus} x 80 GB" for gpus in GPUS)], rows)


def socket_table(socket: Socket = SOCKET) -> str:
    """Decoding, one sequence: tokens a second at most."""
    rows = []
    for name, model in MODELS.items():
        nbytes = bytes_of(op_costs(model, 1, CONTEXT, False))
        one = nbytes / socket.bandwidth
        # Pages dealt out to both sockets' memories: half of what each socket reads comes over the link.
        blind = max(nbytes / 2 / socket.bandwidth, nbytes / 4 / socket.link)
        split = one / 2 + 2 * model.num_hidden_layers * socket.latency
        rows.append([name, *(f"{1 / each:.0f}" for each in (one, blind, split)), f"{2 / one:.0f}"])
    head = ["model", "one socket", "two, pages dealt out", "two, rows split", "two replicas, together"]
    return table(head, rows)


def bytes_table() -> str:
    rows = [
        [
            name,
            2 * model.num_hidden_layers,
            *(f"{exchanged(model, batch, element) / 1e6:.2f} MB" for batch in (1, 64) for element in (2, 4)),
        ]
        for name, model in MODELS.items()
    ]
    return table(["model", "all-reduces", "B = 1, bf16", "float32", "B = 64, bf16", "float32"], rows)


def tables() -> dict[str, str]:
    """Those of docs/scaling.md, by what they are about."""
    found = {"all-reduces of a step": bytes_table()}
    for name, model in MODELS.items():
        found[f"{name}, tensor parallel, tokens a second at most"] = latency_table(model)
        found[f"{name}, all-reduces of a step on eight GPUs, and their share of it"] = exchange_table(model)
        found[f"{name} on eight GPUs, three ways"] = throughput_table(model)
        found[f"{name}, a prompt of 8,192 tokens, ms"] = prompt_table(model)
    found["memory"] = memory_table()
    found[f"two sockets of {SOCKET.name}, one sequence, tokens a second at most"] = socket_table()
    return found


if __name__ == "__main__":
    for title, text in tables().items():
        print(f"{title}\n\n{text}\n")
