"""Shared by all tests: one seed per run, printed with every failure, and one backend per instruction set."""

from __future__ import annotations

import secrets
import zlib
from functools import cache

import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--seed", type=int, default=None, help="seed of the random inputs (default: a fresh one)"
    )


def pytest_configure(config):
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

    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", _native.cpu_isas())
    if "engine" in metafunc.fixturenames:
        gpus = [device for device in _native.devices() if device != "cpu"]
        metafunc.parametrize("engine", [*_native.cpu_isas(), *gpus])


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
    return gpu_backend(engine) if engine in _native.devices() else cpu_backend(engine, 2)
