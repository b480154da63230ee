"""Which engines there are, and how the process of each is started. All run the same checkpoint's numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """dense: our form of the matrices of attention and lm_head. context: tokens that there is room for."""

    checkpoint: Path
    dense: str
    threads: int
    context: int

    @property
    def peers_dense(self) -> str:
        """What comes next to it in a peer."""
        return "q8" if self.dense == "q8" else "bf16"


Command = list[str | Path]


def ours(setting: Setting, python: Path) -> Command:
    sizes = [str(setting.threads), str(setting.context)]
    return [python, "-m", "bench.peers.ours", setting.checkpoint, *sizes, setting.dense]


def llama_cpp(setting: Setting, python: Path) -> Command:
    sizes = [str(setting.threads), str(setting.context)]
    return [
        python,
        "-m",
        "bench.peers.llama_cpp",
        gguf_of(setting.checkpoint, setting.peers_dense, python),
        *sizes,
    ]


def hf_transformers(setting: Setting, python: Path) -> Command:
    return [python, "-m", "bench.peers.hf_transformers", setting.checkpoint, str(setting.threads)]


OURS = "ours"
PEERS: dict[str, Callable[[Setting, Path], Command]] = {
    "llama.cpp": llama_cpp,
    "transformers": hf_transformers,
}


def commands(setting: Setting, peers: dict[str, Path]) -> dict[str, Command]:
    """Of each engine, ours first. peers: of each the Python that has it."""
    theirs = {name: PEERS[name](setting, python) for name, python in peers.items()}
    return {OURS: ours(setting, Path(sys.executable)), **theirs}


def gguf_of(folder: Path, dense: str, python: Path) -> Path:
    """The checkpoint's GGUF file, written if it is not there."""
    path = folder.with_name(f"{folder.name}-{dense}.gguf")
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        command = [python, "-m", "bench.peers.gguf_file", folder, path, "--dense", dense]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": "python:."})
    return path
