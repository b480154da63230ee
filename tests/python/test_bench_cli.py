"""gptoss-native bench, on the bundled model and the smallest shapes. Oracle: what the JSON must hold.

Figures are not checked for their size: tests are not timed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from gptoss_native import _native, open_checkpoint
from gptoss_native.bench import limits
from gptoss_native.bench.ops import OPS
from gptoss_native.cli import bench

from tests.python.command import run
from tests.python.test_inspect_numbers import png_size

OPS_RUN = ["bench", "ops", "--shape", "tiny", "--seconds", "0", "--context", "32"]
DECODE = ["bench", "decode", "demo", "--tokens", "4"]
RUNS = {
    "ops": [*OPS_RUN, "--op", "embed", "moe_up", "--rows", "1", "3"],
    "decode": [*DECODE, "--batch", "1", "2", "--context", "0", "40"],
    "prefill": ["bench", "prefill", "demo", "--prompt", "16", "40", "--tries", "3", "--chunk", "32"],
    "growth": [
        "bench", "growth", "demo", "--context", "0", "40", "--batch", "1", "2", "--experts", "4", "8",
        "--threads", "1", "2", "--prompt", "16", "--tokens", "4", "--seconds", "0",
    ],
    "serve": ["bench", "serve", "--concurrency", "2", "--requests", "3", "--tokens", "3", "--rounds", "1"],
    "startup": ["bench", "startup", "--rounds", "1", "--max-model-len", "256"],
}  # fmt: skip
LINES = {
    "ops": {f"{op} rows={rows}" for op in ("embed", "moe_up f32", "moe_up q8") for rows in (1, 3)},
    "decode": {f"decode batch={batch} context={context}" for batch in (1, 2) for context in (0, 40)},
    "prefill": {"prefill prompt=16", "prefill prompt=40"},
    "growth": {
        "context=0", "context=40", "batch=1", "batch=2", "prompt=16", "experts=4", "experts=8",
        *(f"{what} threads={count}" for what in ("decode", "prompt") for count in (1, 2)),
    },
    "serve": {f"{side} {what} in_flight=2" for side in ("server", "engine") for what in
              ("TTFT", "TPOT", "ITL", "E2EL")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Limits that take no time and mean nothing."""
    monkeypatch.setattr(limits, "READ_BYTES", 4 << 20)
    monkeypatch.setattr(limits, "PEAK_SECONDS", 1e-3)


def test_every_bench_is_tried_here():
    assert RUNS.keys() == bench.COMMANDS.keys()


@pytest.mark.parametrize("name", RUNS)
def test_a_bench_says_what_it_found_and_how(capsys, tmp_path, name):
    path, plots = tmp_path / "out.json", ["--plot", str(tmp_path / "out.png")]
    drawn = name not in ("serve", "startup")
    code, _, err = run(capsys, *RUNS[name], "--json", str(path), *(plots if drawn else []))
    assert code == 0, err
    found = json.loads(path.read_text())
    assert (found["schema"], found["bench"]) == (1, name)
    machine = found["machine"]
    assert machine.keys() >= {
        "device",
        "name",
        "cores",
        "load average",
        "date",
        "command",
        "commit",
        "versions",
    }
    assert machine["versions"].keys() == {"gptoss-native", "python", "numpy"}
    if name == "serve":
        assert 0 < machine["native_share"] <= 1
    names = [line["name"] for line in found["lines"]]
    assert len(set(names)) == len(names)
    if name in LINES:
        assert set(names) == LINES[name]
    for line in [*found["lines"], *found["limits"]]:
        values = line["values"]
        assert line["median"] == pytest.approx(float(np.median(values)))
        assert line["better"] in ("more", "less")
        assert all(math.isfinite(value) for value in values)
        assert line["spread"] >= 0
    if drawn:
        assert {line["unit"] for line in found["limits"]} == {"B/s", "op/s"}
        assert all(min(line["values"]) > 0 and line["share"] > 0 for line in found["lines"])
        pictures = sorted(tmp_path.glob("*.png"))
        assert len(pictures) == (2 if name == "ops" else 1)
        for picture in pictures:
            assert 300 < min(png_size(picture)) <= max(png_size(picture)) < 3000
            assert str(picture) in err
    # A run compared with itself has not changed.
    code, again, err = run(capsys, *RUNS[name], "--compare", str(path))
    assert code == 0, err
    assert again.count(" same") + again.count(" better") + again.count(" worse") + again.count(
        " unknown"
    ) >= len(names)


@pytest.mark.parametrize("name", ["decode", "growth"])
@pytest.mark.parametrize("flag", [[], ["--compute-context"]])
def test_a_bench_says_where_its_context_comes_from(capsys, tmp_path, name, flag):
    path = tmp_path / "out.json"
    code, out, err = run(capsys, *RUNS[name], *flag, "--json", str(path))
    assert code == 0, err
    way = "computed" if flag else "filled with random keys and values"
    assert f"\ncontext: {way}\n" in out
    assert json.loads(path.read_text())["settings"]["context is"] == way


def test_the_whole_context_of_a_model_holds_the_decoded_tokens_too(capsys):
    code, out, err = run(capsys, *DECODE, "--context", "131072")
    assert code == 0, err
    assert f"decode batch=1 context={131072 - 4 - 8 - 1} " in out


def test_ops_has_all_ops_and_instruction_sets(capsys, isa):
    code, out, err = run(capsys, *OPS_RUN, "--rows", "2", "--isa", isa, "--threads", "2")
    assert code == 0, err
    assert f"cpu {isa}, 2 threads\nread bandwidth: " in out
    assert {text.split()[0] for text in out.splitlines()} >= set(OPS)


def test_several_instruction_sets_are_told_apart(capsys, tmp_path):
    path = tmp_path / "out.json"
    isas = _native.cpu_isas()[:2]
    code, _, err = run(
        capsys, *RUNS["ops"], "--isa", *isas, isas[0], "--json", str(path), "--plot", f"{path}.png"
    )
    assert code == 0, err
    several = [f", {isa}" for isa in isas] if len(isas) > 1 else [""]
    names = [line["name"] for line in json.loads(path.read_text())["lines"]]
    assert set(names) == {name + isa for name in LINES["ops"] for isa in several}


def scaled(path, factor, better=None):
    """The report with every value multiplied, as if another program had run."""
    found = json.loads(path.read_text())
    for line in found["lines"]:
        line["values"] = [factor * line["median"]] * 5
        line["better"] = better or line["better"]
    path.write_text(json.dumps(found))


def lines_of(out):
    """What a comparison says of the lines, without the limits."""
    return out.split("\nlimits\n")[0]


def test_a_regression_can_fail_the_command(capsys, tmp_path):
    path = tmp_path / "old.json"
    assert run(capsys, *RUNS["prefill"], "--json", str(path))[0] == 0
    scaled(path, 1e6)  # a million times as fast as today
    compared = [*RUNS["prefill"], "--compare", str(path)]
    code, out, _ = run(capsys, *compared)
    assert (code, lines_of(out).count(" worse")) == (0, 2)
    code, _, err = run(capsys, *compared, "--fail-on-regression")
    assert code == 3
    assert "2 of 2 lines got worse beyond the noise: prefill prompt=16, prefill prompt=40" in err
    scaled(path, 1e-12)
    code, out, _ = run(capsys, *compared, "--fail-on-regression")
    assert (code, lines_of(out).count(" better")) == (0, 2)


def test_random_weights_are_written_once_and_kept(capsys, tmp_path):
    arguments = [
        "bench",
        "prefill",
        "random:tiny",
        "--prompt",
        "8",
        "--tries",
        "1",
        "--folder",
        str(tmp_path),
    ]
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert "writing random weights of the tiny shape, 0.00 GB" in err
    written = tmp_path / "random-tiny"
    assert open_checkpoint(written).config.hidden_size == 64
    before = {file.name: file.stat().st_mtime_ns for file in written.iterdir()}
    code, _, err = run(capsys, *arguments)
    assert (code, "writing" in err) == (0, False)
    assert {file.name: file.stat().st_mtime_ns for file in written.iterdir()} == before


def test_random_weights_that_the_disk_cannot_hold(capsys, tmp_path, monkeypatch):
    from gptoss_native.bench import random_weights

    class Full:
        free = 1000

    monkeypatch.setattr(random_weights.shutil, "disk_usage", lambda path: Full)
    code, out, err = run(capsys, "bench", "decode", "random:120b", "--folder", str(tmp_path))
    assert (code, out) == (1, "")
    assert "needs 65,248,815,744 bytes, the disk has 1,000 free" in err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_shape_is_refused(capsys, tmp_path):
    (tmp_path / "random-20b").symlink_to(open_checkpoint("demo").path)
    code, _, err = run(capsys, "bench", "decode", "random:20b", "--folder", str(tmp_path))
    assert code == 2
    assert "is a checkpoint of another shape than 20b; remove it or choose another --folder" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["bench", "dance"], 2, "dance"),
        (["bench", "ops", "--op", "dance"], 2, "dance"),
        (["bench", "ops", "--rows", "0"], 2, "--rows takes whole numbers from 1 to 32,768, found 0"),
        (["bench", "ops", "--rows", "many"], 2, "many"),
        (["bench", "ops", "--context", "-1"], 2, "--context takes"),
        (["bench", "ops", "--context", "131073"], 2, "from 0 to 131,072, found 131073"),
        (["bench", "ops", "--device", "tpu"], 2, "--device is 'tpu'"),
        (["bench", "ops", "--isa", "mmx"], 1, "isa 'mmx' is not available"),
        (["bench", "ops", "--threads", "-1"], 2, "--threads takes"),
        (["bench", "ops", "--seconds", "nan"], 2, "--seconds takes a number from 0 to 600"),
        (["bench", "ops", "--shape", "7b"], 2, "7b"),
        (["bench", "ops", "--json", "/nowhere/out.json"], 2, "/nowhere is no folder"),
        (["bench", "ops", "--plot", "/nowhere/out.png"], 2, "/nowhere is no folder"),
        (["bench", "ops", "--compare", "/nowhere/old.json"], 1, "/nowhere/old.json"),
        (["bench", "ops", "--fail-on-regression"], 2, "--fail-on-regression needs --compare"),
        (["bench", "decode"], 2, "MODEL"),
        (["bench", "decode", "/nowhere"], 1, "/nowhere"),
        (["bench", "decode", "random:7b"], 2, "there are random:20b"),
        (["bench", "decode", "demo", "--batch", "0"], 2, "--batch takes"),
        (["bench", "decode", "demo", "--context", "2000000"], 2, "--context takes"),
        (["bench", "decode", "demo", "--context", "1000000"], 2, "ask for less"),
        (["bench", "decode", "demo", "--context", "131073"], 2, "demo has 131,072; ask for less"),
        (["bench", "decode", "demo", "--tokens", "1"], 2, "--tokens takes"),
        (["bench", "decode", "demo", "--chunk", "0"], 2, "--chunk takes"),
        (["bench", "prefill", "demo", "--prompt", "0"], 2, "--prompt takes"),
        (["bench", "prefill", "demo", "--tries", "0"], 2, "--tries takes"),
        (["bench", "growth", "demo", "--experts", "129"], 2, "--experts takes"),
        (["bench", "serve", "--rounds", "0"], 2, "--rounds takes"),
        (["bench", "serve", "/nowhere", "--rounds", "1"], 1, "/nowhere"),
        (["bench", "startup", "/nowhere", "--rounds", "1"], 1, "/nowhere"),
        (["bench", "startup", "--rounds", "0"], 2, "--rounds takes"),
    ],
)
def test_hostile_arguments_give_one_sentence(capsys, args, code, message, monkeypatch):
    monkeypatch.setattr(
        "os.getloadavg", lambda: (0.0, 0.0, 0.0)
    )  # of a busy machine there is a sentence more
    found, out, err = run(capsys, *args)
    assert (found, out) == (code, "")
    assert err.startswith("gptoss-native: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_busy_machine_is_named(capsys, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (1e4, 0.0, 0.0))
    _, _, err = run(capsys, *RUNS["prefill"])
    assert "the load average is 10000.0 on" in err


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run(capsys, "bench", "ops", "--plot", str(tmp_path / "x.png"))
    assert (code, out) == (1, "")
    assert "a plot needs matplotlib; install gptoss-native[plot]" in err


def test_help_names_every_bench(capsys):
    code, out, _ = run(capsys, "bench", "--help")
    assert code == 0
    assert all(name in out for name in bench.COMMANDS)
    for name in bench.COMMANDS:
        code, out, err = run(capsys, "bench", name, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: gptoss-native bench {name}")
        assert "--compare OLD" in out


def test_nothing_else_imports_the_benches():
    code = "import sys, gptoss_native, gptoss_native.llm, gptoss_native.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if "bench" in name]
