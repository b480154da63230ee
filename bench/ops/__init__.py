"""One bench for each op: `cases(backend, rng, rows, model)` yields what to time."""

from importlib import import_module

OPS = (
    "embed",
    "attention_in",
    "paged_attention",
    "attention_out",
    "moe_gate",
    "moe_up",
    "moe_down",
    "unembed",
    "sample",
    "lora",
)


def cases_of(op: str):
    """The op's `cases`."""
    return import_module(f"bench.ops.{op}").cases
