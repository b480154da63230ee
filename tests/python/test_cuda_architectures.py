"""For which GPUs the kernels are compiled: whatever names Hopper must get code that has wgmma.

Oracle: the PTX ISA, where wgmma needs sm_90a, and the CUDA programming guide, where code for 'a' runs on one
compute capability only, so that PTX for later GPUs must do without.
"""

import subprocess
from pathlib import Path

import pytest

from tests.simt.programs import tool

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
include("{folder}/cuda_architectures.cmake")
gptoss_cuda_architectures(found "{wanted}" "{native}")
message(STATUS "found ${{found}}")
"""


@pytest.mark.parametrize(
    ("wanted", "native", "expected"),
    [
        ("native", "90-real", "90a-real"),
        ("native", "80-real;90-real", "80-real;90a-real"),
        ("native", "120-real", "120-real"),
        ("90", "", "90a-real;90-virtual"),
        ("80;90-real;90-virtual", "", "80;90a-real;90-virtual"),
        ("80-real;90a-real;100a-real;90-virtual", "", "80-real;90a-real;100a-real;90-virtual"),
        ("native;90", "90-real", "90a-real;90-virtual"),
    ],
)
def test_hopper_gets_code_with_wgmma(tmp_path, wanted, native, expected):
    script = tmp_path / "ask.cmake"
    script.write_text(SCRIPT.format(folder=ROOT / "cmake", wanted=wanted, native=native))
    output = subprocess.run([tool("cmake"), "-P", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == f"-- found {expected}"


def test_the_build_asks_before_it_compiles():
    """The list that targets get is the one that was asked for, and comes after CMake has looked for GPUs."""
    text = (ROOT / "cmake" / "find_cuda.cmake").read_text()
    assert text.index("enable_language(CUDA)") < text.index(
        "gptoss_cuda_architectures(CMAKE_CUDA_ARCHITECTURES"
    )
