"""Ours against llama.cpp on the same weights, in the same run, A B A B.

    make peers                                 # once: .venv-peers with llama-cpp-python and gguf
    python -m bench.versus CHECKPOINT [--dense bf16] [--rounds 5] [--long] [--json OUT]

CHECKPOINT is one of bench/synthetic_checkpoint.py or a real one; its GGUF file is written beside it once.
Each engine is a process of its own, and one rests while the other works. A figure is the median of the
rounds, the ratio that of each round's pair. The read bandwidth is measured around each decoding, and
an engine's share of it is of these two. Both models must fit the memory together: for larger ones, --in-turn
loads one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gptoss_native.bench.costs import Formats, decode_bytes
from gptoss_native.bench.limits import read_bandwidth
from gptoss_native.checkpoint import open_checkpoint

from bench.peers.protocol import Process

WORK = {
    "prefill 512": "prefill 512",
    "prefill 128": "prefill 128",
    "decode": "decode 16 32",
}
LONG = {"decode at 4k": "decode 4000 16"}  # a minute and more each time, for the prompt
DECODINGS = 3  # in a round, as they are short
TOKENS = {"prefill 512": 512, "prefill 128": 128, "decode": 32, "decode at 4k": 16}
CONTEXT = 4096 + 64


def gguf_of(folder: Path, dense: str, python: Path) -> Path:
    """The checkpoint's GGUF file, written if it is not there."""
    path = folder.with_name(f"{folder.name}-{dense}.gguf")
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        command = [python, "-m", "bench.peers.gguf_file", folder, path, "--dense", dense]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": "python:."})
    return path


def agreement(engines: dict[str, Process], vocab: int) -> float:
    """How far the logits are apart, as a share of their norm: they must be of the same numbers.

    The median of several prompts: where rounding tips the choice of an expert, one may be far off, above all
    with random weights.
    """
    tokens, apart = np.random.default_rng(1).integers(0, min(vocab, 199_998), 48), []
    with tempfile.TemporaryDirectory() as folder:
        for end in range(8, 49, 5):
            found = []
            for name, engine in engines.items():
                path = Path(folder) / f"{name}.npy"
                np.save(path, tokens[:end])
                engine.ask(f"logits {path}")
                found.append(np.load(f"{path}.out.npy"))
            apart.append(float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[0])))
    return statistics.median(apart)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--dense",
        choices=("bf16", "packed", "q8"),
        default="bf16",
        help="of the dense matrices, ours in this form, the peer's in 8 bits or bf16",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--in-turn", action="store_true", help="one engine in memory at a time; no pairs")
    parser.add_argument("--long", action="store_true", help="decode after 4,000 tokens too, which takes long")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.checkpoint)
    tail = [str(args.threads), str(CONTEXT)]
    theirs = [
        args.peers,
        "-m",
        "bench.peers.llama_cpp",
        gguf_of(args.checkpoint, "q8" if args.dense == "q8" else "bf16", args.peers),
        *tail,
    ]
    commands = {
        "ours": [sys.executable, "-m", "bench.peers.ours", args.checkpoint, *tail, args.dense],
        "llama.cpp": theirs,
    }
    work = WORK | (LONG if args.long else {})
    formats = Formats("cpu", dense_dtype=args.dense)
    per_token = decode_bytes(checkpoint.config, 1, 32, formats.kv_bytes, formats.dense_bytes)
    bandwidths: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in commands}
    seconds: dict[str, dict[str, list[float]]] = {name: {what: [] for what in work} for name in commands}
    found: dict[str, object] = {}

    def measure(engines: dict[str, Process]) -> None:
        for engine in engines.values():
            for line in work.values():
                engine.ask(line)  # once for the caches
        for _ in range(args.rounds):
            for what, line in work.items():
                for name, engine in list(engines.items()) * (DECODINGS if what == "decode" else 1):
                    around = [read_bandwidth(args.threads)]
                    seconds[name][what].append(engine.ask(line))
                    around.append(read_bandwidth(args.threads))
                    bandwidths.extend(around)
                    if what == "decode":
                        rate = TOKENS[what] * per_token / seconds[name][what][-1]
                        shares[name].append(rate / statistics.mean(around))
        for name, engine in engines.items():
            found[f"{name} peak GB"] = round(engine.ask("peak") / 1e9, 2)
            engine.close()

    if args.in_turn:
        for name, command in commands.items():
            measure({name: Process(command)})
    else:
        engines = {name: Process(command) for name, command in commands.items()}
        found["logits apart"] = round(agreement(engines, checkpoint.config.vocab_size), 4)
        measure(engines)
    print(f"{'':14}{'ours tok/s':>14}{'llama.cpp':>14}{'ratio':>8}{'  spread'}")
    for what in work:
        tokens = TOKENS[what]
        rates = [tokens / statistics.median(seconds[name][what]) for name in commands]
        ratios = [b / a for a, b in zip(*(seconds[name][what] for name in commands), strict=True)]
        found[what] = {
            "ours": round(rates[0], 2),
            "llama.cpp": round(rates[1], 2),
            "ratio": round(statistics.median(ratios), 3),
        }
        print(
            f"{what:14}{rates[0]:14.1f}{rates[1]:14.1f}{statistics.median(ratios):8.2f}"
            f"  {min(ratios):.2f} to {max(ratios):.2f}"
        )
    found |= {
        "read GB/s": [
            round(x / 1e9, 1) for x in (min(bandwidths), statistics.median(bandwidths), max(bandwidths))
        ],
        "share of bandwidth": {name: round(statistics.median(found), 3) for name, found in shares.items()},
        "dense": args.dense,
        "load average": os.getloadavg()[0],
        "machine": platform.platform(),
        "command": " ".join(["python -m bench.versus", *sys.argv[1:]]),
    }
    for name in (
        "logits apart",
        "read GB/s",
        "share of bandwidth",
        "ours peak GB",
        "llama.cpp peak GB",
        "load average",
    ):
        print(f"{name}: {found.get(name)}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
