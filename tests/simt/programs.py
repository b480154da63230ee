"""The simulator's programs: how they are compiled, and what they say about their cases."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Case:
    """One form of one case, as `simt_bugs` lists it."""

    name: str
    form: str  # "right" or "wrong"
    finder: str  # "nobody", "simulator", "result", "address" or "thread"

    def __str__(self) -> str:
        return f"{self.name}-{self.form}"


def tool(name: str) -> str:
    """Path of a build tool, beside this Python or on PATH."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    path = shutil.which(name, path=beside)
    if path is None:
        raise FileNotFoundError(f"{name} is neither beside {sys.executable} nor on PATH; pip install {name}")
    return path


def run(name: str, *arguments: object) -> None:
    """Runs a build tool; RuntimeError with its output when it fails."""
    command = [tool(name), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")


def build(*targets: str, sanitize: str = "none") -> Path:
    """Compiles what has changed of targets of tests/simt/CMakeLists.txt; returns the folder they are in."""
    folder = ROOT / "build" / f"simt-{sanitize}"
    settings = [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DSIMT_SANITIZE={sanitize}"]
    run("cmake", "-G", "Ninja", *settings, "-S", HERE, "-B", folder)
    run("cmake", "--build", folder, "--parallel", "2", "--target", *targets)
    return folder


def listed_cases() -> list[Case]:
    """Every form of every case, read from the sources: tests are collected before anything is compiled."""
    entry = re.compile(r'\{"(\w+)",\s*Finder::(\w+),\s*[^,]+(?:<[^>]*>)?,\s*([^{}]+?)\}', re.DOTALL)
    cases = []
    for source in (*sorted(HERE.glob("bugs_*.cpp")), HERE / "primitives.cpp"):
        for name, finder, wrong in entry.findall(source.read_text()):
            cases.append(Case(name, "right", "nobody"))
            if wrong.strip() != "nullptr":
                cases.append(Case(name, "wrong", finder))
    return cases


def named_line(name: str) -> str:
    """`file:line` that the error of a wrong form must name: the line marked `// named by NAME`."""
    for source in HERE.glob("bugs_*.cpp"):
        for number, line in enumerate(source.read_text().splitlines(), 1):
            _, marker, names = line.partition("// named by ")
            if marker and name in names.split():
                return f"{source.name}:{number}"
    raise LookupError(f"no line is marked `// named by {name}`")
