"""Includes and imports point one way. Oracle: the order of directories in docs/architecture.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["core", "model", "cpu", "cuda", "bindings"]
PACKAGE = ROOT / "python" / "gptoss_native"
# Modules that must run, and be tested, without the native module.
PURE = [
    "scheduler.py",
    "kv_cache.py",
    "sampling.py",
    "stopping.py",
    "tokenizer.py",
    "config.py",
    "constraints",
]
PURE += ["harmony", "checkpoint"]


def includes_upwards(room: str, text: str) -> list[str]:
    """Project headers that a file of `room` includes from a room further down the list."""
    included = re.findall(r'#include "(\w+)/', text)
    return [name for name in included if ORDER.index(name) > ORDER.index(room)]


def imports_of(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[-1] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names)
            names.update((node.module or "").split("."))
    return names


@pytest.mark.parametrize("room", ORDER)
def test_cpp_includes_point_one_way(room):
    files = sorted((ROOT / "csrc" / room).glob("*.*"))
    assert files, f"csrc/{room} holds no files"
    wrong = {file.name: found for file in files if (found := includes_upwards(room, file.read_text()))}
    assert not wrong, f"csrc/{room} includes from rooms after it: {wrong}"


def test_the_check_sees_an_upward_include():
    assert includes_upwards("core", '#include "cpu/kernels.h"\n#include <vector>\n') == ["cpu"]


@pytest.mark.parametrize("name", PURE)
def test_pure_python_never_imports_the_native_module(name):
    path = PACKAGE / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files, f"{path} holds no files"
    for file in files:
        assert "_native" not in imports_of(file.read_text()), f"{file.name} imports the native module"


def test_checkpoints_are_read_without_the_engine():
    """The package imports from outside itself only what describes a model and what reports an error."""
    for file in sorted((PACKAGE / "checkpoint").glob("*.py")):
        found = {
            node.module
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom) and node.level == 2
        }
        wrong = found - {"config", "errors", "strict_json"}
        assert not wrong, f"checkpoint/{file.name} imports {sorted(wrong, key=str)}"


def test_no_source_file_holds_two_ideas():
    """No file over 400 lines (docs/architecture.md): when one grows, it is two ideas."""
    files = [f for d in ("csrc", "python", "tests", "tools", "bench") for f in (ROOT / d).rglob("*")]
    long = {
        str(f.relative_to(ROOT)): n
        for f in files
        if f.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"} and (n := len(f.read_text().splitlines())) > 400
    }
    assert not long, f"files over 400 lines: {long}"
