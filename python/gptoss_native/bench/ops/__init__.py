"""What to time of each op: one file for each, with `cases(backend, rng, rows, model)`."""

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
    return import_module(f".{op}", __name__).cases
