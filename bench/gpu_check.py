"""One command for a machine with a GPU: build, test, sanitize, measure, report.

    python -m bench.gpu_check                     everything, as long as it takes
    python -m bench.gpu_check --budget 540        as much as fits nine minutes; call again to go on
    python -m bench.gpu_check --stage tests       one stage, also when it has been done

Results go to bench/results, one file for each device and commit. What has succeeded is not run again.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from gptoss_native.bench.ops import OPS, cases_of  # noqa: E402

from bench.gpu.report import markdown, plot  # noqa: E402
from bench.gpu.stages import Record, Results, Stage, run_stages  # noqa: E402

DECODED, PROMPTS = (1, 2, 4, 8, 16, 32, 64), (128, 512, 2048, 8192)
PROMPT_LENGTHS = (128, 512, 2048, 8192, 32_768)
# Tests of every op that compute-sanitizer runs: small, and with the result compared.
SMALL_TESTS = (
    "matches_the_reference",
    "alone_and_in_a_crowd",
    "copies_the_row",
    "adds_the_projection",
    "are_those_of_the_definition",
    "cut_is_at_the_right_token",
    "are_of_the_untouched_logits",
    "is_not_finite_fails_alone",
    "products_of_normed_rows",
    "moe_down_adds_them",
)
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
TAIL = 4000  # characters of a failed command's output that are kept


def run(command: Sequence[str], seconds: float) -> str:
    """The output of a command. Raises RuntimeError with the end of it when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        output = (
            error.output.decode(errors="replace") if isinstance(error.output, bytes) else error.output or ""
        )
        raise RuntimeError(f"{' '.join(command)} took more than {seconds} s:\n{output[-TAIL:]}") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout[-TAIL:]}")
    return done.stdout


def build(_: Results) -> dict[str, Any]:
    """The module with kernels for this machine's GPU alone, installed into this Python."""
    definitions = ["GPTOSS_CUDA=ON", "CMAKE_CUDA_ARCHITECTURES=native"]
    options = [part for definition in definitions for part in ("-C", f"cmake.define.{definition}")]
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    run([*install, "-C", "build-dir=build/gpu", *options, "-e", "."], 560)
    found = run([sys.executable, "-c", "from gptoss_native import _native; print(_native.devices())"], 60)
    if "cuda" not in found:
        raise RuntimeError(
            f"the module has devices {found.strip()}, expected cuda among them; is there a GPU?"
        )
    return {"note": f"devices {found.strip()}"}


def tests(device: str):
    def stage(_: Results) -> dict[str, Any]:
        output = run([sys.executable, "-m", "pytest", "-q", "tests/ops", "tests/model", "-k", device], 560)
        return {"note": output.strip().splitlines()[-1].strip("= ")}

    return stage


def sanitizer(tool: str, device: str):
    def stage(_: Results) -> dict[str, Any]:
        program = shutil.which("compute-sanitizer")
        if program is None:
            return {"note": "compute-sanitizer is not on this machine's PATH: not run"}
        small = f"{device} and ({' or '.join(SMALL_TESTS)})"
        command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        # Attention loads values 16 bytes at a time and masks those of slots that hold no token. A model's
        # cache has never been written there, an op's has been poisoned.
        folders = ["tests/ops"] if tool == "initcheck" else ["tests/ops", "tests/model"]
        output = run([*command, sys.executable, "-m", "pytest", "-q", "-x", *folders, "-k", small], 580)
        summary = [line for line in output.splitlines() if "SUMMARY" in line]
        return {"note": summary[-1].strip("= ") if summary else "no error"}

    return stage


def shapes(shape: str, device: str):
    def stage(_: Results) -> dict[str, Any]:
        from bench.gpu.correctness import check_shapes

        seed = secrets.randbits(32)
        try:
            return {
                "largest relative errors": check_shapes(device, shape, np.random.default_rng(seed)),
                "seed": seed,
            }
        except AssertionError as error:
            raise AssertionError(
                f"{error} (bench.gpu.correctness --device {device} --shape {shape} --seed {seed})"
            ) from None

    return stage


def golden(device: str):
    def stage(_: Results) -> dict[str, Any]:
        from bench.gpu.correctness import check_golden

        found = check_golden(device)
        wrong = {name: case for name, case in found.items() if not is_within_rounding(name, case)}
        if wrong:
            raise RuntimeError(f"further from the oracle than bf16 explains: {wrong}")
        shares = ", ".join(f"{name} {case['same argmax']:.0%}" for name, case in found.items())
        return {"cases": found, "note": f"same argmax: {shares}"}

    return stage


def is_within_rounding(name: str, case: dict[str, float]) -> bool:
    """See check_golden: a trained model may hardly differ, of random ones half the rows may not."""
    if name == "demo":
        return case["same argmax"] >= 0.99
    return case["same argmax"] >= 0.85 and case["median row error"] <= 0.05


def limits(device: str):
    def stage(_: Results) -> dict[str, Any]:
        if device != "cuda":
            return {"bandwidth": 1e9, "flops": None, "note": "a simulated GPU has no limits: 1 GB/s taken"}
        from gptoss_native.bench.gpu_limits import measure_gpu
        from gptoss_native.bench.limits import limits_of as best_of

        found = best_of(measure_gpu())
        return {"bandwidth": found.bandwidth, "flops": found.peaks.get("bf16")}

    return stage


def limits_of(results: Results):
    from gptoss_native.bench.limits import Limits

    found = results.get("limits", {})
    if not found.get("ok"):
        raise RuntimeError("the limits have not been measured; run --stage limits first")
    return Limits(found["bandwidth"], {"bf16": found["flops"]} if found["flops"] else {})


def op(name: str, shape: str, device: str, seconds: float):
    def stage(results: Results) -> dict[str, Any]:
        from gptoss_native import _native
        from gptoss_native.bench.op_times import figures
        from gptoss_native.bench.shapes import SHAPES

        backend, most = _native.Backend(device=device), limits_of(results)
        rows = (1, 3, 70) if shape == "tiny" else (*DECODED, *PROMPTS)
        found = []
        for figure in figures(name, cases_of(name), backend, rows, SHAPES[shape], most, seconds):
            print(figure, flush=True)
            found.append(figure.to_dict())
        return {"figures": found, "note": f"{len(found)} measurements"}

    return stage


def peers(_: Results) -> dict[str, Any]:
    """torch's dense products at the shapes of attention_in, attention_out and unembed."""
    from bench.gpu.torch_products import torch_products

    shapes = [
        (rows, *matrix)
        for matrix in ((2880, 5120), (4096, 2880), (2880, 201_088))
        for rows in (1, 8, 64, 2048)
    ]
    found = torch_products(shapes)
    return {
        "torch us": found,
        "note": f"{len(found)} products by torch" if found else "torch is not there: not run",
    }


def model(shape: str, device: str, folder: str | None):
    def stage(results: Results) -> dict[str, Any]:
        from bench.gpu.whole_model import measure_model

        tiny = shape == "tiny"
        batches, prompts = ((1, 2), (16,)) if tiny else (DECODED, PROMPT_LENGTHS)
        if tiny:
            return measure_model("demo", device, batches, prompts, limits_of(results), answer=2)
        path = Path(folder) if folder else Path(tempfile.gettempdir()) / f"gptoss-random-{shape}"
        if not (path / "config.json").exists():
            run([sys.executable, "bench/synthetic_checkpoint.py", shape, str(path)], 560)
        return measure_model(str(path), device, batches, prompts, limits_of(results))

    return stage


def facts_of(device: str) -> dict[str, str]:
    """What the results hold for."""
    try:
        commit = run(["git", "rev-parse", "--short", "HEAD"], 30).strip()
        if run(["git", "status", "--porcelain", "--untracked-files=no"], 30).strip():
            commit += "-changed"
    except (RuntimeError, OSError):  # a copy of the files alone
        commit = "unknown"
    name, driver = f"{device} on {platform.machine()}", ""
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
        name, driver = (part.strip() for part in run(query, 60).strip().split(",", 1))
    date = datetime.date.today().isoformat()
    return {"device": name, "driver": driver, "commit": commit, "date": date}


def stages_of(arguments: argparse.Namespace) -> list[Stage]:
    device, shape = arguments.device, arguments.shape
    found = [Stage("build", 300, build)] if device == "cuda" else []
    found += [Stage("golden", 20, golden(device)), Stage("tests", 240, tests(device))]
    models = ["20b", "120b"] if shape != "tiny" else ["tiny"]
    found += [Stage(f"shapes {name}", 120, shapes(name, device)) for name in models]
    found += [Stage("limits", 15, limits(device))]
    found += [Stage(f"op {name}", 45, op(name, shape, device, arguments.seconds)) for name in OPS]
    found += [Stage("model", 300, model(shape, device, arguments.checkpoint))]
    if device == "cuda":
        found += [Stage("peers", 30, peers)]
        found += [Stage(f"sanitizer {tool}", 300, sanitizer(tool, device)) for tool in SANITIZERS]
    return found


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda, or simt to try this program out (default: cuda)"
    )
    parser.add_argument("--shape", default="20b", choices=("20b", "120b", "tiny"), help="(default: 20b)")
    parser.add_argument(
        "--budget", type=float, default=1e9, metavar="SECONDS", help="stop in time (default: never)"
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="spent on each figure (default: 0.4)")
    parser.add_argument(
        "--stage", nargs="+", default=[], metavar="NAME", help="only these, done before or not"
    )
    parser.add_argument(
        "--checkpoint", help="folder of weights for the whole model (default: random ones, written)"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "bench" / "results", help="(default: bench/results)"
    )
    arguments = parser.parse_args(given)
    stages = stages_of(arguments)
    unknown = set(arguments.stage) - {stage.name for stage in stages}
    if unknown:
        parser.error(f"no stage {min(unknown)!r}; there are: {', '.join(stage.name for stage in stages)}")
    record = Record(arguments.out, facts_of(arguments.device))
    if arguments.stage:
        stages = [stage for stage in stages if stage.name in arguments.stage]
        for stage in stages:
            record.results.pop(stage.name, None)
    left = run_stages(stages, record, arguments.budget)
    report = markdown(record)
    record.path.with_suffix(".md").write_text(report)
    plot(record, record.path.with_suffix(".png"))
    print(report)
    if left:
        print(f"left for the next call: {', '.join(left)}")
    failed = [name for name, result in record.results.items() if not result.get("ok")]
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
