"""Golden cases: a checkpoint folder with the official implementations' float32 logits in golden.npz.

`ids_T` are T tokens, `hf_T` and `gptoss_T` (sometimes `f64_T`) the logits [T, vocab] that transformers and
gpt_oss give them, `greedy_P_N` a prompt of P tokens and the N likeliest tokens after it.
tools/make_golden.py makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gptoss_native.checkpoint import open_checkpoint

from tests.compare import Difference, difference
from tests.model.random_model import native_config
from tests.model.stepping import chunked, greedy, run, whole

ORACLES = ("hf", "gptoss", "f64")
SCHEDULES = {"whole": whole, "one by one": chunked(1), "by fives": chunked(5)}
TOLERANCE = 2e-5


@dataclass
class GoldenCase:
    config: dict  # as `_native.Model` takes it
    arrays: dict[str, np.ndarray]
    golden: dict[str, np.ndarray]

    @property
    def lengths(self) -> list[int]:
        return sorted(int(name[4:]) for name in self.golden if name.startswith("ids_"))

    def logits(self, rng, backend, length: int, schedule: str) -> np.ndarray:
        tokens = [self.golden[f"ids_{length}"].tolist()]
        return run(rng, backend, self.config, self.arrays, tokens, SCHEDULES[schedule])[0]

    def differences(self, logits: np.ndarray, length: int) -> dict[str, Difference]:
        """From each oracle there is."""
        found = {oracle: self.golden.get(f"{oracle}_{length}") for oracle in ORACLES}
        return {o: difference(logits, expected) for o, expected in found.items() if expected is not None}

    def greedy(self, rng, backend) -> tuple[list[int], list[int]]:
        """(our tokens, the oracle's) after the golden prompt."""
        name = next(name for name in self.golden if name.startswith("greedy_"))
        prompt, count = map(int, name.split("_")[1:])
        tokens = self.golden[name].tolist()
        ours = greedy(rng, backend, self.config, self.arrays, tokens[:prompt], count)
        return ours, tokens[prompt:]


def load_case(folder: Path, checkpoint: Path | None = None) -> GoldenCase:
    """A case; with its weights from another checkpoint, if given. Raises CheckpointError."""
    opened = open_checkpoint(checkpoint or folder)
    with np.load(folder / "golden.npz") as golden:
        return GoldenCase(native_config(opened.config), opened.arrays(), dict(golden))
