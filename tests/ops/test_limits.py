"""The limits that benches compare with. Oracle: arithmetic on a clock, and what no machine can do.

No figure is checked for its size beyond sanity: tests are not timed.
"""

import numpy as np
import pytest
from gptoss_native import _native
from gptoss_native.errors import GptossError

from tests.conftest import cpu_backend

SMALL = 4 << 20


@pytest.mark.parametrize("kind", ["f32", "int8"])
def test_an_arithmetic_peak_is_a_rate(isa, kind):
    found = np.array(cpu_backend(isa, 2).peak(kind, seconds=1e-3, tries=3))
    assert found.shape == (3,)
    # Between a thousandth of an operation a nanosecond and a million cores' worth.
    assert ((found > 1e6) & (found < 1e18)).all(), found


def test_the_environment_names_the_usual_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("GPTOSS_NATIVE_ISA", isa)
    assert _native.Backend("cpu", threads=1).isa == isa
    assert _native.Backend("cpu", threads=1, isa="portable").isa == "portable"
    monkeypatch.setenv("GPTOSS_NATIVE_ISA", "mmx")
    with pytest.raises(
        GptossError, match="GPTOSS_NATIVE_ISA 'mmx' is not available; this host and build have"
    ):
        _native.Backend("cpu", threads=1)


def test_bandwidth_is_a_rate(isa):
    found = np.array(cpu_backend(isa, 2).read_bandwidth(SMALL, tries=4))
    assert found.shape == (4,)
    assert ((found > 1e6) & (found < 1e15)).all(), found


def test_a_measurement_leaves_the_backend_as_it_was(rng):
    backend = _native.Backend("cpu", threads=3)
    weight, tokens = rng.integers(0, 1 << 15, (9, 32)).astype(np.uint16), np.int32([4, 8])
    before, after = np.empty((2, 32), np.float32), np.empty((2, 32), np.float32)
    backend.embed(tokens, weight, before)
    backend.peak("f32", 1e-3, 1)
    backend.read_bandwidth(SMALL, 1)
    backend.embed(tokens, weight, after)
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.peak("f64"), "kind is 'f64', expected f32 or int8"),
        (lambda b: b.peak("f32", seconds=float("nan")), "seconds is nan"),
        (lambda b: b.peak("f32", seconds=-1), "seconds is -1"),
        (lambda b: b.peak("int8", tries=0), "tries is 0"),
        (lambda b: b.read_bandwidth(1), "nbytes is 1, expected"),
        (lambda b: b.read_bandwidth(1 << 50), "expected"),
        (lambda b: b.read_bandwidth(SMALL, tries=0), "tries is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(GptossError, match=message):
        call(_native.Backend("cpu", threads=1))


@pytest.mark.skipif("simt" not in _native.devices(), reason="this build has no simulated GPU")
def test_other_devices_have_no_such_limits():
    with pytest.raises(GptossError, match="device is 'simt', expected 'cpu'"):
        _native.Backend("simt").peak("f32")
