"""inspect --tensor and --experts. Oracle: the checkpoint's numbers; of PNG files, signature and size."""

from __future__ import annotations

import json
import re
import struct
import sys

import numpy as np
import pytest
from gptoss_native import open_checkpoint
from gptoss_native.checkpoint.writer import write_checkpoint
from gptoss_native.parameters import Parameters
from gptoss_native.parameters.store import FileStore, specs_of

from tests.python.command import run


@pytest.fixture(scope="module")
def demo():
    checkpoint = open_checkpoint("demo")
    return Parameters(checkpoint.config, FileStore(checkpoint.arrays(), specs_of(checkpoint.config)))


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize(
    "name",
    ["layers.1.experts.gate_up_proj", "layers.0.experts.3.down_proj", "lm_head.weight", "layers.0.sinks"],
)
def test_a_tensor_s_numbers_are_shown(capsys, tmp_path, demo, name):
    plot = tmp_path / "tensor.png"
    code, out, _ = run(capsys, "inspect", "demo", "--tensor", name, "--plot", str(plot))
    assert code == 0
    parameter = demo[name]
    values = parameter.decode().astype(np.float64)
    assert out.startswith(f"{parameter.name}: {parameter.dtype} ")
    bars = [line.rsplit(" ", 1)[-1].replace(",", "") for line in out.split("\n\n")[1].splitlines()]
    assert sum(map(int, bars)) == values.size
    assert ("\nexpert " in out) == (len(parameter.shape) == 3)
    assert min(png_size(plot)) > 300
    code, out, _ = run(capsys, "inspect", "demo", "--tensor", name, "--json")
    found = json.loads(out)
    assert found["mean"] == pytest.approx(values.mean(), abs=1e-9)
    assert found["values"] == values.size
    assert found["shape"] == list(parameter.shape)


def test_a_pattern_shows_a_line_for_each(capsys, demo):
    code, out, _ = run(capsys, "inspect", "demo", "--tensor", "layers.*.router.*")
    assert code == 0
    expected = demo.match("layers.*.router.*")
    lines = out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == [parameter.name for parameter in expected]
    norms = [np.linalg.norm(parameter.decode().astype(np.float64)) for parameter in expected]
    assert [float(line.split()[3]) for line in lines] == pytest.approx(norms, rel=1e-3)
    code, out, _ = run(capsys, "inspect", "demo", "--tensor", "layers.1.experts.3.*", "--json")
    assert [each["name"] for each in json.loads(out)] == [p.name for p in demo.match("layers.1.experts.3.*")]


def test_a_tensor_that_holds_nan_is_shown(capsys, tmp_path, demo):
    source = open_checkpoint("demo")
    arrays = {name: np.array(array) for name, array in source.arrays().items()}
    arrays["model.layers.0.mlp.router.bias"][:3] = 0x7FC0, 0x7F80, 0xFF80
    arrays["model.layers.1.mlp.router.bias"][:] = 0x7FC0
    write_checkpoint(tmp_path / "odd", source.config, arrays)
    for layer, missing in ((0, 3), (1, 8)):
        name, plot = f"layers.{layer}.router.bias", tmp_path / f"{layer}.png"
        code, out, err = run(capsys, "inspect", str(tmp_path / "odd"), "--tensor", name, "--plot", str(plot))
        assert code == 0, err
        assert re.search(rf"not finite +{missing}\n", out)
        assert min(png_size(plot)) > 300
        code, out, _ = run(capsys, "inspect", str(tmp_path / "odd"), "--tensor", name, "--json")
        assert json.loads(out)["not_finite"] == missing
        assert (json.loads(out)["mean"] is None) == (missing == 8)


def test_the_use_of_experts_is_counted_and_drawn(capsys, tmp_path):
    plot = tmp_path / "use.png"
    arguments = ["inspect", "demo", "--experts", "--prompt", "What is 1 + 2?", "--max-tokens", "30"]
    code, out, _ = run(capsys, *arguments, "--plot", str(plot))
    assert code == 0
    assert "3.00 if all 8 experts were used alike" in out
    assert min(png_size(plot)) > 300
    assert min(png_size(tmp_path / "use-entropy.png")) > 300
    code, out, _ = run(capsys, *arguments, "--json")
    found = json.loads(out)
    counts = np.array(found["counts"])
    assert counts.shape == (4, 8)
    assert (counts.sum(axis=1) == 4 * found["tokens"]).all()
    assert all(0 < bits <= 2 for bits in found["router_entropy"])


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--tensor", "layers.9.sinks"], 2, "no parameter is called"),
        (["--tensor", "layers.0.sinks", "--experts"], 2, "choose one"),
        (["--plot", "x.png"], 2, "add one of them"),
        (["--tensor", "nothing.*"], 2, "no parameter fits"),
        (["--tensor", "layers.*.sinks", "--plot", "x.png"], 2, "--plot draws one tensor"),
        (["--tensor", "layers.0.sinks", "--plot", "/nowhere/x.png"], 1, "cannot be written"),
        (["--experts", "--max-model-len", "0"], 2, "--max-model-len must be"),
    ],
)
def test_wrong_wishes_are_one_sentence(capsys, args, code, words):
    found, _, err = run(capsys, "inspect", "demo", *args)
    assert (found, err.count("\n")) == (code, 1)
    assert words in err


def test_without_matplotlib_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    code, _, err = run(capsys, "inspect", "demo", "--tensor", "layers.0.sinks", "--plot", "x.png")
    assert code == 1
    assert "install gptoss-native[plot]" in err
