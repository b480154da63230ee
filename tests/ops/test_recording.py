"""Recording: ops kept on the device are run when asked, and only then.

Oracle: the same calls made at once. The benches of every op are run through it on small shapes.
"""

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.bench import cases as bench_cases
from gptoss_native.bench.limits import Limits
from gptoss_native.bench.op_times import figures
from gptoss_native.bench.ops import OPS, cases_of
from gptoss_native.bench.shapes import SHAPES
from gptoss_native.errors import GptossError

from tests.ops.inputs import bf16, empty, linear, normal


@pytest.mark.parametrize("op", OPS)
def test_every_bench_runs(backend, rng, op, monkeypatch):
    """One decoded row, several, and a prompt; the limit is one that no machine reaches."""
    monkeypatch.setattr(bench_cases, "COLD_BYTES", 1)
    rows = [1, int(rng.integers(2, 9))] + [int(rng.integers(65, 90))] * (
        op != "sample"
    )  # which knows no prompts
    limits = Limits(1e15, {"f32": 1e18, "int8": 1e18, "bf16": 1e18})
    found = list(figures(op, cases_of(op), backend, rows, SHAPES["tiny"], limits, spend=0.0))
    assert {figure.rows for figure in found} == set(rows)
    for figure in found:
        assert figure.microseconds > 0, figure
        assert figure.nbytes > 0, figure
        assert 0 < figure.share < 1, figure


def test_nothing_runs_while_it_is_recorded(backend, rng):
    tokens, weight = rng.integers(0, 9, 3).astype(np.int32), bf16(rng, 9, 32)
    residual = empty(3, 32)
    recording = _native.Recording(backend, [lambda: backend.embed(tokens, weight, residual)] * 2)
    assert len(recording) == 2
    assert recording.seconds(3) > 0
    assert np.isnan(residual).all()  # results stay on the device
    backend.embed(tokens, weight, residual)  # recording has ended
    assert np.isfinite(residual).all()


def test_arguments_may_go_before_the_recording_runs(backend, rng):
    """A sanitizer would name memory that is read after it was freed."""

    def call():
        x, (weight, bias) = normal(rng, 2, 64), linear(rng, 32, 64)
        backend.attention_out(x, weight, bias, np.zeros((2, 32), np.float32))

    recording = _native.Recording(backend, [call, call])
    assert recording.seconds(2) > 0


def test_what_cannot_be_recorded_is_refused(backend):
    with pytest.raises(GptossError, match="ran no op on this backend"):
        _native.Recording(backend, [])
    with pytest.raises(GptossError, match="recording already"):
        _native.Recording(backend, [lambda: _native.Recording(backend, [])])
    with pytest.raises(ZeroDivisionError):
        _native.Recording(backend, [lambda: 1 / 0])
    tokens, weight, residual = np.zeros(1, np.int32), np.zeros((1, 32), np.uint16), empty(1, 32)
    recording = _native.Recording(backend, [lambda: backend.embed(tokens, weight, residual)])
    with pytest.raises(GptossError, match="rounds is 0"):
        recording.seconds(0)
