"""All ops, one table: python -m bench.ops [--isa ...] [--rows ...]"""

from importlib import import_module

from bench.ops.harness import run

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
)

run({op: import_module(f"bench.ops.{op}").cases for op in OPS}, __doc__)
