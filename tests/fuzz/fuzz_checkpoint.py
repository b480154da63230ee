"""Damage checkpoints at random and open them: each must load or be refused with CheckpointError, quickly.

    python -m tests.fuzz.fuzz_checkpoint --n 20000 --seed 1 [--forward]

A case is repeated with --seed S --only I. --forward also builds the native model of every case that loads and
runs one token: under AddressSanitizer, a check that what validation lets through is safe to compute with.
"""

from __future__ import annotations

import argparse
import random
import resource
import secrets
import shutil
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gptoss_native.checkpoint import Checkpoint, open_checkpoint
from gptoss_native.errors import CheckpointError

from tests.checkpoints import tiny_config, write_tiny
from tests.fuzz.mutations import MUTATIONS

MAX_SECONDS = 2.0
MEMORY_SLACK = 32 << 20  # beyond twice the files' size; a refused 50,000-deep JSON needs some megabytes


@dataclass
class Result:
    """How many cases loaded and were refused; `failures` says what went wrong with the others."""

    loaded: int
    refused: int
    failures: list[str]
    reasons: Counter[str]  # line that refused -> cases

    def __str__(self) -> str:
        return (
            f"{self.loaded + self.refused + len(self.failures)} mutated: {self.loaded} loaded, "
            f"{self.refused} refused, {len(self.failures)} crashed"
        )


def originals(folder: Path, seed: int) -> list[Path]:
    """Valid checkpoints to damage: both layouts, whole and in shards, of one or two layers."""
    rng = np.random.default_rng(seed)
    paths = []
    for layout in ("huggingface", "openai"):
        for shard_bytes, layers in ((None, 1), (20_000, 2)):
            path = folder / f"{layout}-{layers}"
            write_tiny(path, rng, layout, shard_bytes, tiny_config(num_hidden_layers=layers))
            (path / "generation_config.json").write_text('{"eos_token_id": [3, 5], "temperature": 1.0}')
            open_checkpoint(path)
            paths.append(path)
    return paths


def cases(folder: Path, seed: int, numbers: range) -> Iterator[tuple[int, Path, str]]:
    """(number, damaged checkpoint, what was done), one at a time; repeatable by seed and number."""
    whole = originals(folder / "originals", seed)
    case = folder / "case"
    for number in numbers:
        source = random.Random(f"{seed}/{number}")
        original = source.choice(whole)
        shutil.copytree(original, case)
        said = [original.name, source.choice(MUTATIONS)(case, source)]
        if source.random() < 0.25:
            try:
                said.append(source.choice(MUTATIONS)(case, source))
            except (ValueError, LookupError, OSError, TypeError, AttributeError, RecursionError):
                said.append("nothing more: the first change left no JSON or file to change")
        yield number, case, "; ".join(said)
        shutil.rmtree(case)


def exercise(checkpoint: Checkpoint, forward: bool) -> None:
    """Use what opening promised: each array, the folder of the tokenizer, and with `forward` one token."""
    for name, array in checkpoint.arrays().items():
        tensor = checkpoint.tensors[name]
        if array.shape != tensor.shape or array.nbytes != tensor.nbytes:
            raise AssertionError(f"{name} promised {tensor.shape} and is {array.shape}")
        int(array.max())
    if not checkpoint.tokenizer_directory.is_dir():
        raise AssertionError(f"{checkpoint.tokenizer_directory} is no folder")
    if forward:
        from tests.fuzz.forward import run_one_token

        run_one_token(checkpoint)


def run(folder: Path, seed: int, numbers: range, forward: bool = False) -> Result:
    """Open every case; a failure is an exception other than CheckpointError, or too much time or memory."""
    result = Result(0, 0, [], Counter())
    for original in originals(folder / "warm-up", seed):  # what loads once is no case's memory
        exercise(open_checkpoint(original), forward)
    for number, case, said in cases(folder, seed, numbers):
        problem = _judge(case, forward, result)
        if problem is not None:
            result.failures.append(f"--seed {seed} --only {number} ({said}): {problem}")
    return result


def _judge(case: Path, forward: bool, result: Result) -> str | None:
    """Open one case and count it; returns what is wrong with how that went."""
    size = sum(path.stat().st_size for path in case.iterdir() if path.is_file() and not path.is_symlink())
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    start = time.perf_counter()
    try:
        checkpoint = open_checkpoint(case)
        opened = time.perf_counter()
        exercise(checkpoint, forward)
    except CheckpointError as error:
        opened = time.perf_counter()
        message = str(error)
        if not 0 < len(message) < 2_000 or not message.isprintable():
            return f"a message of {len(message)} characters: {message[:200]!r}"
        outcome = "refused"
        place = traceback.extract_tb(error.__traceback__)[-1]
        result.reasons[f"{Path(place.filename).name}:{place.lineno}"] += 1
    except BaseException as error:  # whatever escapes is what this program looks for
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error)[-3:]).strip()
    else:
        outcome = "loaded"
    if opened - start > MAX_SECONDS:
        return f"took {opened - start:.2f} s"
    allowed = 2 * size + MEMORY_SLACK
    grown = max(
        tracemalloc.get_traced_memory()[1] - before,
        1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident),
    )
    if grown > allowed:
        return f"needed {grown:,} bytes of memory for files of {size:,}"
    setattr(result, outcome, getattr(result, outcome) + 1)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2_000, help="number of cases")
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one")
    parser.add_argument("--only", type=int, default=None, help="run this case alone and show its error")
    parser.add_argument("--forward", action="store_true", help="run one token through every case that loads")
    parser.add_argument("--reasons", action="store_true", help="count cases by the line that refused")
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    numbers = range(options.n) if options.only is None else range(options.only, options.only + 1)
    tracemalloc.start()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-checkpoint-") as folder:
        result = run(Path(folder), seed, numbers, options.forward)
    print(f"seed {seed}, {time.monotonic() - start:.0f} s: {result}")
    for failure in result.failures[:20]:
        print(failure, file=sys.stderr)
    if options.reasons or options.only is not None:
        for place, count in result.reasons.most_common():
            print(f"{count:6} {place}")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
