"""The time line from `exec` to the first token, in fresh processes that are watched from outside.

Several kinds of process take turns: one that imports NumPy, one that imports the package too, one that goes
all the way through the Python interface and says when it is where, and the command itself. What a process
prints is timed where it arrives, so that the interpreter's own start counts too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..errors import GptossError
from .report import Line

#: stage -> what has happened since the stage before it
STAGES = {
    "python": "the interpreter runs",
    "import": "import gptoss_native",
    "load": "LLM(...): weights, cache, threads",
    "token": "the first token",
}
PROMPT = [10, 11, 12, 13]  # ordinary tokens in every vocabulary
CHILD = f"""
import sys
def at(stage): print(stage, flush=True)
at("python")
from gptoss_native import LLM, SamplingParams
at("import")
llm = LLM(sys.argv[1], max_model_len=int(sys.argv[2]))
at("load")
llm.generate([{PROMPT}], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
at("token")
"""
CLOCK = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
READ_AT_ONCE = 16 << 20


def time_line(model: str, context: int) -> dict[str, float]:
    """Seconds from exec to each stage. Raises GptossError when the process fails."""
    return _watch([sys.executable, "-c", CHILD, model, str(context)], tuple(STAGES))


def command_seconds(model: str, context: int) -> float:
    """From exec to the first byte that `gptoss-native generate` prints of an answer to a short text."""
    command = [sys.executable, "-m", "gptoss_native", "generate", model, "1 + 1 =", "--max-tokens", "1"]
    return _watch([*command, "--max-model-len", str(context), "--temperature", "0"], ("",))[""]


def import_milliseconds(modules: str) -> float:
    """Of CPU, to import them in a new process."""
    command = [sys.executable, "-c", CLOCK.format(modules)]
    return 1e3 * float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def read_seconds(model: str) -> float:
    """To read the checkpoint's tensors from where the system has them now, one thread."""
    begin, room = time.perf_counter(), bytearray(READ_AT_ONCE)
    for file in open_checkpoint(model).files:
        with open(file.path, "rb", buffering=0) as source:
            while source.readinto(room):
                pass
    return time.perf_counter() - begin


def measure(model: str, context: int, rounds: int) -> Iterator[Line]:
    """Lines in ms, each with a value for each round, all taken in turn."""
    names = ("numpy", "both", "files", "command")
    found: dict[str, list[float]] = {name: [] for name in (*names, *STAGES)}
    for _ in range(rounds):
        found["numpy"].append(import_milliseconds("numpy"))
        found["both"].append(import_milliseconds("numpy, gptoss_native"))
        found["files"].append(1e3 * read_seconds(model))
        for stage, seconds in time_line(model, context).items():
            found[stage].append(1e3 * seconds)
        if _answers_text(model):
            found["command"].append(1e3 * command_seconds(model, context))
    alone = [both - numpy for numpy, both in zip(found["numpy"], found["both"], strict=True)]
    yield _line("CPU of import numpy", found["numpy"])
    yield _line("CPU of import gptoss_native beyond numpy", alone)
    yield _line("read the checkpoint's files, 1 thread", found["files"])
    before = [0.0] * rounds
    for stage, what in STAGES.items():
        passed = [now - then for now, then in zip(found[stage], before, strict=True)]
        yield _line(f"stage {stage}: {what}", passed, at=found[stage])
        before = found[stage]
    yield _line("exec to first token, Python", before)
    if found["command"]:
        yield _line("exec to first text, gptoss-native generate", found["command"])


def _line(name: str, values: list[float], **facts: object) -> Line:
    return Line(name, "ms", values, "less", facts)


def _answers_text(model: str) -> bool:
    """Whether the model's vocabulary is its tokenizer's: random weights may have a smaller one."""
    folder = Path(os.path.expanduser(model))
    return not folder.is_dir() or open_checkpoint(model).config.vocab_size >= 200_000


def _watch(command: Sequence[str], lines: Sequence[str]) -> dict[str, float]:
    """Seconds from the start of a process until each of the lines begins to come; "" is any output."""
    begin, found = time.perf_counter(), {}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=lines != ("",), bufsize=-1
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        if lines == ("",):
            if os.read(child.stdout.fileno(), 1):
                found[""] = time.perf_counter() - begin
            child.stdout.read()
        else:
            for line in child.stdout:
                found[line.strip()] = time.perf_counter() - begin
        error = child.stderr.read()
    if child.returncode or set(found) != set(lines):
        text = error if isinstance(error, str) else error.decode(errors="replace")
        last = text.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise GptossError(f"a process that was to be timed exited with {child.returncode}: {last[0]}")
    return found
