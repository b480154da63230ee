"""The check for machines with a GPU, tried without one: stages, record, report, prediction."""

from __future__ import annotations

import json

import pytest
from gptoss_native import _native
from gptoss_native.checkpoint.tensor_names import expected_tensors

from bench import gpu_check, predict
from bench.gpu.correctness import check_golden, check_shapes
from bench.gpu.report import markdown
from bench.gpu.stages import Record, Stage, run_stages

FACTS = {"device": "some GPU", "commit": "abc", "date": "2026-01-01", "driver": "1"}
DEVICE = _native.devices()[-1]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def stages_of(clock, runs, broken=()):
    def stage(name, seconds):
        def run(results):
            runs.append((name, sorted(results)))
            clock.now += seconds
            if name in broken:
                raise RuntimeError("it broke")
            return {"value": name.upper()}

        return Stage(name, seconds, run)

    return [stage("a", 10), stage("b", 50), stage("c", 20)]


def test_what_fits_is_run_and_the_next_call_goes_on(tmp_path):
    clock, runs = Clock(), []
    stages = stages_of(clock, runs)
    left = run_stages(stages, Record(tmp_path, FACTS), 40, clock, lambda line: None)
    assert (left, [name for name, _ in runs]) == (["b"], ["a", "c"])
    left = run_stages(stages, Record(tmp_path, FACTS), 60, clock, lambda line: None)
    assert (left, runs[2:]) == ([], [("b", ["a", "c"])])
    assert run_stages(stages, Record(tmp_path, FACTS), 60, clock, lambda line: None) == []
    assert len(runs) == 3
    assert Record(tmp_path, FACTS | {"commit": "other"}).results == {}


def test_a_stage_that_fails_is_kept_shown_and_run_again(tmp_path):
    clock, runs = Clock(), []
    record = Record(tmp_path, FACTS)
    run_stages(stages_of(clock, runs, broken={"b"}), record, 1e9, clock, lambda line: None)
    assert [record.results[name]["ok"] for name in "abc"] == [True, False, True]
    assert "| b | FAILED: RuntimeError: it broke | 50" in markdown(record)
    again = Record(tmp_path, FACTS)
    run_stages(stages_of(clock, runs), again, 1e9, clock, lambda line: None)
    assert [name for name, _ in runs] == ["a", "b", "c", "b"]
    assert json.loads(again.path.read_text())["stages"]["b"]["value"] == "B"


def test_the_program_measures_ops_and_a_model_on_what_there_is(tmp_path, capsys):
    """The same program on a device that is always there; figures of a simulated GPU mean nothing."""
    options = ["--device", DEVICE, "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)]
    assert gpu_check.main([*options, "--stage", "limits", "op embed", "op moe_up", "model"]) == 0
    text = capsys.readouterr().out
    for expected in ("moe_up", "of limit", "| batch | tok/s |", "| model | ok |", "Copy bandwidth"):
        assert expected in text, expected
    [written] = tmp_path.glob("*.json")
    stages = json.loads(written.read_text())["stages"]
    assert {figure["rows"] for figure in stages["op moe_up"]["figures"]} == {1, 3, 70}
    assert gpu_check.main([*options, "--budget", "0"]) == 1
    assert "left for the next call: golden, tests" in capsys.readouterr().out


def test_an_unknown_stage_is_refused_with_the_names(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--device", DEVICE, "--stage", "everything"])
    assert "there are: golden, tests" in capsys.readouterr().err


def test_real_shapes_and_golden_cases_are_checked(rng):
    found = check_shapes(DEVICE, "tiny", rng, lambda line: None)
    assert {"paged_attention 129", "dense 8", "experts 64"} <= found.keys()
    golden = check_golden(DEVICE)
    assert golden.keys() >= {"demo", "odd"}
    for name, case in golden.items():
        assert gpu_check.is_within_rounding(name, case), (name, case)
    assert not gpu_check.is_within_rounding("demo", {"same argmax": 0.98})


@pytest.mark.parametrize(("model", "gigabytes"), [("20b", 3.708), ("120b", 5.003)])
def test_predicted_bytes_are_those_of_the_checkpoint(model, gigabytes):
    """Oracle: the sizes of the checkpoint's tensors, of the experts the four that a token chooses."""
    config = predict.MODELS[model]
    stored = sum(
        spec.nbytes * (4 / config.num_local_experts if ".experts." in spec.name else 1)
        for spec in expected_tensors(config)
        if spec.name != "model.embed_tokens.weight"
    )
    counted = predict.decode_bytes(config, 1, 0)
    assert counted == pytest.approx(stored, rel=1e-3)  # keys, values and sinks apart
    assert counted / 1e9 == pytest.approx(gigabytes, abs=0.001)
    every = predict.decode_bytes(config, 10_000, 0) - 10_000 * 4 * 1024 * config.num_hidden_layers
    assert every > 0.95 * sum(
        spec.nbytes for spec in expected_tensors(config) if spec.name != "model.embed_tokens.weight"
    )


def test_the_sanitizers_tests_are_there():
    root = gpu_check.ROOT / "tests"
    names = [
        line for folder in ("ops", "model") for file in (root / folder).glob("test_*.py")
        for line in file.read_text().splitlines() if line.startswith("def test_")
    ]  # fmt: skip
    for name in gpu_check.SMALL_TESTS:
        assert any(name in line for line in names), name


def test_the_prediction_prints_a_table_for_each_step():
    text = predict.table(predict.MODELS["20b"], [(1, 1024, False), (2048, 0, True)])
    assert "B = 1" in text
    assert "prompt 2048" in text
    assert text.count("|\n") == 13
