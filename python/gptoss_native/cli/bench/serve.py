"""gptoss-native bench serve."""

from __future__ import annotations

import argparse
import asyncio

from ...bench import serving
from ...bench.report import Line, Report, machine_facts
from ...checkpoint import open_checkpoint
from ..options import MODEL_HELP
from . import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="demo", help=f"{MODEL_HELP}; default: demo"
    )
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N",
        help="requests in flight; default: 1 4 16 64",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", type=int, default=64, metavar="N", help="tokens of each; default: %(default)s"
    )
    parser.add_argument(
        "--tokens", type=int, default=128, metavar="N", help="of each answer; default: %(default)s"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=32,
        metavar="N",
        help="of a round and concurrency; default: %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    options.add_result_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    options.check_counts(args, 1, "concurrency", "requests", "rounds", most=10_000)
    options.check_counts(args, 1, "prompt", "tokens")
    old = options.check_results(args, "serve")
    names = ("model", "concurrency", "prompt", "tokens", "requests", "rounds")
    settings = {name: getattr(args, name) for name in names}
    open_checkpoint(args.model)  # what is wrong with it is better said here than by the server
    columns = ("TTFT", "p99", "TPOT", "ITL p99", "E2EL", "p99")
    lines: list[Line] = []

    def show(found: list[Line]) -> None:
        if not lines:
            print(f"{args.model}; ms, means and 99th percentiles")
            print(f"{'in flight':>9} {'':8}" + "".join(f"{name:>10}" for name in columns))
        lines.extend(found)
        end: dict[str, float] = {}
        for side in ("server", "engine"):
            of = {line.facts["what"]: line.facts for line in found if line.facts["side"] == side}
            at_once, end[side] = of["E2EL"]["in_flight"], of["E2EL"]["mean"]
            # An answer of one token has no time between two.
            values = [
                of["TTFT"]["mean"],
                of["TTFT"]["p99"],
                of["TPOT"]["mean"],
                of.get("ITL", of["TPOT"])["p99"],
            ]
            values += [of["E2EL"]["mean"], of["E2EL"]["p99"]]
            print(f"{at_once:9} {side:8}" + "".join(f"{value:10.2f}" for value in values), flush=True)
        print(f"{'':9} overhead {end['server'] / end['engine'] - 1:+.1%} of E2EL", flush=True)

    device, share = asyncio.run(serving.measure(serving.Options(**settings), show))
    if share is not None:
        print(f"native code: {share:.1%} of the engine's time at 1 in flight")
    report = Report("serve", settings, machine_facts(device, args.load, native_share=share), [], lines)
    return options.finish(args, report, old)
