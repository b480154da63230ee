"""Shared by all tests: one seed per run, printed with every failure, and one backend per instruction set."""

from __future__ import annotations

import secrets
import signal
import zlib
from functools import cache

import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--seed", type=int, default=None, help="seed of the random inputs (default: a fresh one)"
    )
    parser.addoption(
        "--schedules",
        type=int,
        default=3,
        metavar="N",
        help="run each test on the simulated GPU N times, other orders and inputs each time (default: 3)",
    )


def pytest_configure(config):
    # A shell's background jobs begin with Ctrl+C switched off, and there are tests of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seed = config.getoption("--seed")
    config.test_seed = secrets.randbits(32) if seed is None else seed


def pytest_report_header(config):
    return f"seed: {config.test_seed} (repeat with --seed {config.test_seed})"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    report = (yield).get_result()
    if report.failed and "rng" in getattr(item, "fixturenames", ()):
        report.sections.append(("seed", f"--seed {item.config.test_seed}"))


def pytest_generate_tests(metafunc):
    from gptoss_native import _native

    # Builds for tests have the tables with tiles by emulation; the first is "amx-emulated".
    isas = [*_native.cpu_isas(), *_native.emulated_isas()[:1]]
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", isas)
    if "engine" in metafunc.fixturenames:
        engines = {name: name for name in [*isas, *_native.devices()[1:]]}
        if "simt" in engines:
            # The number is part of the test's name and so of what its random numbers depend on.
            engines |= {f"simt.{n}": "simt" for n in range(2, metafunc.config.getoption("--schedules") + 1)}
        metafunc.parametrize("engine", engines.values(), ids=engines.keys())


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers that differ from test to test and from run to run; --seed repeats them."""
    return np.random.default_rng([request.config.test_seed, zlib.crc32(request.node.nodeid.encode())])


@cache
def cpu_backend(isa: str, threads: int):
    from gptoss_native import _native

    return _native.Backend(device="cpu", threads=threads, isa=isa)


@cache
def gpu_backend(device: str):
    from gptoss_native import _native

    return _native.Backend(device=device)


@pytest.fixture
def cpu(isa):
    """The CPU backend of one instruction set, on two threads."""
    return cpu_backend(isa, 2)


@pytest.fixture
def backend(engine, rng):
    """Every backend of this build: the CPU's instruction sets, a GPU, the simulated GPU in a random order."""
    from gptoss_native import _native

    if engine == "simt":
        _native.set_schedule(int(rng.integers(2**63)))
        _native.set_architecture(int(rng.choice([80, 90])))
    return gpu_backend(engine) if engine in _native.devices() else cpu_backend(engine, 2)
