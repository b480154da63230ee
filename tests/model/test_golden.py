"""Checkpoints of both layouts against the official implementations, transformers and gpt_oss, in float32."""

from pathlib import Path

import numpy as np
import pytest
from gptoss_native.checkpoint import open_checkpoint
from gptoss_native.checkpoint.writer import write_checkpoint

from tests.compare import assert_close
from tests.model.golden import SCHEDULES, TOLERANCE, load_case
from tests.reference import model as reference

CASES = sorted(path.parent for path in Path(__file__).parent.parent.glob("golden/*/golden.npz"))


@pytest.fixture(params=CASES, ids=lambda path: path.name)
def folder(request) -> Path:
    return request.param


def test_there_are_golden_cases():
    assert len(CASES) == 3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logits_are_those_of_both_oracles(cpu, rng, folder, schedule):
    case = load_case(folder)
    for length in case.lengths:
        logits = case.logits(rng, cpu, length, schedule)
        found = case.differences(logits, length)
        assert {"hf", "gptoss"} <= found.keys()
        for oracle, difference in found.items():
            assert difference.relative <= TOLERANCE, f"{length} tokens {schedule}, {oracle}: {difference}"
            assert difference.nan_mismatches == 0, f"{length} tokens {schedule}, {oracle}: {difference}"


def test_greedy_tokens_are_those_of_the_oracle(cpu, rng, folder):
    ours, expected = load_case(folder).greedy(rng, cpu)
    assert len(expected) >= 24
    assert ours == expected


def test_both_layouts_hold_the_same_weights(rng, folder, tmp_path):
    """The oracle of transformers read one layout, that of gpt_oss the other, written by the same writer."""
    case, opened = load_case(folder), open_checkpoint(folder)
    write_checkpoint(tmp_path / "original", opened.config, opened.arrays(), "openai")
    other = load_case(folder, tmp_path)
    assert open_checkpoint(tmp_path).layout == "openai"
    assert other.config["windows"] == case.config["windows"]
    assert other.arrays.keys() == case.arrays.keys()
    for name, array in case.arrays.items():
        assert (other.arrays[name] == array).all(), name


def test_logits_from_the_openai_layout(cpu, rng, folder, tmp_path):
    opened = open_checkpoint(folder)
    write_checkpoint(tmp_path / "original", opened.config, opened.arrays(), "openai")
    case = load_case(folder, tmp_path)
    length = case.lengths[-1]
    logits = case.logits(rng, cpu, length, "whole")
    assert_close(logits, case.golden[f"gptoss_{length}"], TOLERANCE, f"{length} tokens")


def test_the_reference_is_right_too(folder):
    """The oracle of all other tests, checked against the official implementations."""
    case = load_case(folder)
    for length in case.lengths:
        logits = reference.forward(case.config, case.arrays, case.golden[f"ids_{length}"])
        for oracle in ("hf", "gptoss"):
            assert_close(
                logits.astype(np.float32), case.golden[f"{oracle}_{length}"], 1e-5, f"{oracle}, {length}"
            )
