"""All ops, one table: python -m bench.ops [--device ...] [--rows ...]"""

from bench.ops import OPS, cases_of
from bench.ops.harness import run

run({op: cases_of(op) for op in OPS}, __doc__)
