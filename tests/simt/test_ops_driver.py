"""Each op of csrc/cuda, and the way of weights into kernel form, on the simulated GPU without a model.

Oracle: a schedule of threads gives the bits of every other, on either architecture; csrc/cuda/layout.cpp says
what kernel form is, and its inverse gives the checkpoint's bytes back.
"""

from __future__ import annotations

import subprocess

import pytest

from . import programs

OPS = [
    *("embed", "attention_in", "paged_attention", "attention_out", "moe_gate", "moe_up", "moe_down"),
    *("unembed", "lora", "sample", "prepare", "replay"),
]


@pytest.fixture(scope="module")
def driver():
    return programs.build("simt_ops") / "simt_ops"


def test_all_ops_are_tried(driver):
    listed = subprocess.run([driver], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert listed == OPS


@pytest.mark.parametrize("op", OPS)
def test_every_schedule_gives_the_same_bits(driver, rng, op):
    for architecture in (0, 1):
        seed = 2 * int(rng.integers(2**31)) + architecture
        done = subprocess.run(
            [driver, op, str(seed), "3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"simt_ops {op} {seed} 3: {done.stdout}"
