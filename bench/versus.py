"""Ours against llama.cpp and transformers on the same weights, in the same run, A B A B.

    make peers                                 # once: .venv-peers with llama-cpp-python and gguf
    python -m bench.versus CHECKPOINT [--dense bf16] [--rounds 5] [--long] [--json OUT]
    python -m bench.versus CHECKPOINT --with transformers .venv-oracles/bin/python

CHECKPOINT is one of bench/synthetic_checkpoint.py or a real one; its GGUF file is written beside it once.
Each engine is a process of its own, and one rests while the others work. A figure is the median of the
rounds, the ratio that of each round's pair. The read bandwidth is measured around each answer; an engine's
share of it is of these two. "at N GB/s" compares the answers around which it stayed within a tenth and was
about the same, whenever they came. All models must fit the memory together: for larger ones, --in-turn starts
one after the other in each round.
transformers dequantises the experts to bf16, which takes 3.8 times their bytes in memory and for each token;
its dense matrices are bf16 whatever --dense is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from datetime import date
from functools import partial
from pathlib import Path

from gptoss_native.bench.costs import Formats, decode_bytes
from gptoss_native.bench.limits import read_bandwidth
from gptoss_native.bench.report import cores, cpu_name
from gptoss_native.checkpoint import open_checkpoint
from gptoss_native.config import ModelConfig
from gptoss_native.dense_forms import DENSE_DTYPES

from bench.peers.engines import OURS, PEERS, Setting, commands
from bench.peers.protocol import Process
from bench.peers.rounds import CONTEXT, LONG, WORK, Found, Work, agreement, measure

DEFAULT = ["llama.cpp", ".venv-peers/bin/python"]
SHOWN = ("logits apart", "read GB/s", "share of bandwidth", "peak GB", "load average")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What was asked for; `peers` has the Python of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--dense",
        choices=tuple(DENSE_DTYPES),
        default="bf16",
        help="of the dense matrices, in our form; a peer has 8 bits against 8 bits, and bf16 otherwise",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--with", nargs=2, action="append", dest="peers", metavar=("PEER", "PYTHON"),
        help=f"a peer ({', '.join(PEERS)}) and the interpreter that has it; may be given for each; "
        f"default: {' '.join(DEFAULT)}",
    )  # fmt: skip
    parser.add_argument(
        "--in-turn", action="store_true", help="one engine in memory at a time, started anew each round"
    )
    parser.add_argument("--long", action="store_true", help="decode after 4,000 tokens too, which takes long")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(given)
    args.peers = {name: Path(python) for name, python in args.peers or [DEFAULT]}
    if unknown := args.peers.keys() - PEERS.keys():
        parser.error(f"--with knows {', '.join(PEERS)}, found {', '.join(sorted(unknown))}")
    return args


def rows(found: Found, work: dict[str, Work], peers: list[str]) -> list[str]:
    """A table with a line for each peer and work."""
    lines = [f"{'':14}{'':14}{'ours tok/s':>12}{'theirs':>12}{'ratio':>8}  spread"]
    for peer in peers:
        for what, each in work.items():
            own, theirs = (found.rate(what, name, each.tokens) for name in (OURS, peer))
            ratios = found.ratios(what, peer)
            lines.append(
                f"{peer:14}{what:14}{own:12.1f}{theirs:12.1f}{statistics.median(ratios):8.2f}"
                f"  {min(ratios):.2f} to {max(ratios):.2f}"
            )
            for like in found.at_like_bandwidth(what, peer) if each.is_short else ():
                own, theirs = (each.tokens / statistics.median(times) for times in like[1:])
                at = f"  at {like.bandwidth / 1e9:.0f} GB/s"
                lines.append(
                    f"{'':14}{at:14}{own:12.1f}{theirs:12.1f}{like.ratio:8.2f}"
                    f"  of {len(like.own)} and {len(like.theirs)} answers"
                )
    return lines


def figures(found: Found, work: dict[str, Work], peers: list[str]) -> dict[str, object]:
    """The same and the rest, for JSON."""
    rates: dict[str, object] = {
        what: {
            **{name: round(found.rate(what, name, each.tokens), 2) for name in (OURS, *peers)},
            "ratio": {peer: round(statistics.median(found.ratios(what, peer)), 3) for peer in peers},
            "at like bandwidth": {
                peer: [
                    {
                        "GB/s": round(like.bandwidth / 1e9, 1),
                        "ratio": round(like.ratio, 3),
                        "answers": [len(like.own), len(like.theirs)],
                    }
                    for like in found.at_like_bandwidth(what, peer)
                ]
                for peer in peers
            },
            "tok/s, GB/s before and after": {
                name: [
                    [round(each.tokens / seconds, 1), round(before / 1e9, 1), round(after / 1e9, 1)]
                    for seconds, (before, after) in zip(times, found.around[what][name], strict=True)
                ]
                for name, times in found.seconds[what].items()
            },
        }
        for what, each in work.items()
    }
    bandwidths = (min(found.bandwidths), statistics.median(found.bandwidths), max(found.bandwidths))
    return rates | {
        "read GB/s": [round(x / 1e9, 1) for x in bandwidths],
        "share of bandwidth": {
            name: round(statistics.median(shares), 3) for name, shares in found.shares.items()
        },
        "peak GB": {name: round(peak / 1e9, 2) for name, peak in found.peaks.items()},
    }


def token_bytes(config: ModelConfig, name: str, form: str) -> float:
    """Bytes that an engine reads for a decoded token: others multiply with lm_head as they have it."""
    numbers = Formats("cpu", dense_dtype=form).number_bytes
    return decode_bytes(config, 1, 32, numbers if name == OURS else numbers._replace(head=numbers.dense))


def main() -> None:
    args = arguments()
    config = open_checkpoint(args.checkpoint).config
    setting = Setting(args.checkpoint, args.dense, args.threads, CONTEXT)
    started = commands(setting, args.peers)
    forms = {OURS: setting.dense, "llama.cpp": setting.peers_dense}  # both read the experts' 4 bits
    work, found, apart = WORK | (LONG if args.long else {}), Found(), None
    measured = partial(
        measure,
        work=work,
        rounds=1 if args.in_turn else args.rounds,
        bandwidth=partial(read_bandwidth, args.threads),
        token_bytes={name: token_bytes(config, name, form) for name, form in forms.items()},
        found=found,
    )
    together = [[name] for name in started] * args.rounds if args.in_turn else [list(started)]
    for names in together:
        engines = {name: Process(started[name]) for name in names}
        if not args.in_turn:
            apart = {peer: round(far, 4) for peer, far in agreement(engines, config.vocab_size).items()}
        measured(engines)
        for engine in engines.values():
            engine.close()
    peers = list(args.peers)
    print(*rows(found, work, peers), sep="\n")
    facts = figures(found, work, peers) | {
        "logits apart": apart,
        "dense": args.dense,
        "load average": os.getloadavg()[0],
        "machine": f"{cores()} cores of {cpu_name()}, {date.today()}",
        "command": " ".join(["python -m bench.versus", *sys.argv[1:]]),
    }
    for name in SHOWN:
        print(f"{name}: {facts[name]}")
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
