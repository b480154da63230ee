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
    if "isa" in metafunc.fixturenames:
        from gptoss_native import _native

        metafunc.parametrize("isa", _native.cpu_isas())


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers that differ from test to test and from run to run; --seed repeats them."""
    return np.random.default_rng([request.config.test_seed, zlib.crc32(request.node.nodeid.encode())])


@cache
def cpu_backend(isa: str, threads: int):
    from gptoss_native import _native

    return _native.Backend(device="cpu", threads=threads, isa=isa)


@pytest.fixture
def backend(isa):
    """The CPU backend of one instruction set, on two threads."""
    return cpu_backend(isa, 2)
