"""tools/kernel_table.py: what it reads of the CUDA tools' reports, and that it refuses what must not be.

Oracle: lines of `ptxas -v` and `cuobjdump -sass` of CUDA 13.0, written down here with other numbers each run.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.kernel_table import early_loads, faults, layout, read_log, short_name, tensor_instructions

ROOT = Path(__file__).resolve().parents[2]
SPACE = "_ZN6gptoss4cuda41_GLOBAL__N__afe3440d_9_moe_up_cu_b1491268"
MOE_UP = SPACE + "13moe_up_kernelILi4EEEvNS1_14UpKernelParamsE"
SAMPLE = SPACE + "13sample_kernelENS_12SampleParamsEPfPj"


def ptxas(
    kernel: str, architecture: str, registers: int, stack: int = 0, stores: int = 0, loads: int = 0
) -> str:
    return (
        "ptxas info    : 0 bytes gmem\n"
        f"ptxas info    : Compiling entry function '{kernel}' for '{architecture}'\n"
        f"ptxas info    : Function properties for {kernel}\n"
        f"    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers, {stack} bytes cumulative stack size\n"
        "ptxas info    : Compile time = 83.109 ms\n"
    )


@pytest.mark.parametrize(
    ("mangled", "name"),
    [(MOE_UP, "moe_up<4>"), (SAMPLE, "sample"), ("_Z1kv", "_Z1kv"), ("_Z12embed_kernelPfi", "embed")],
)
def test_names_are_short(mangled, name):
    assert short_name(mangled) == name


def test_every_kernel_and_architecture_is_read(rng):
    wanted = {}
    text = ""
    for kernel in (MOE_UP, SAMPLE):
        for architecture in ("sm_80", "sm_90a"):
            registers, stack, stores, loads = map(int, rng.integers(1, 256, 4))
            text += ptxas(kernel, architecture, registers, stack, stores, loads)
            found = {"registers": registers, "stack": stack, "spill_stores": stores, "spill_loads": loads}
            wanted.setdefault(kernel, {})[architecture] = {**found, "shared": 0}
    assert read_log(text) == wanted


def test_a_report_cut_short_is_refused():
    whole = ptxas(MOE_UP, "sm_80", 96)
    with pytest.raises(ValueError, match="sm_80"):
        read_log(whole[: whole.index("    0 bytes stack")])


def test_tensor_instructions_are_counted_by_kernel_and_architecture():
    code = "\n".join(
        [
            "\tcode for sm_80",
            f"\t\tFunction : {MOE_UP}",
            "        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R16, R4 ;",
            "        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R18, R4 ;",
            "        /*0030*/                   FFMA R4, R8, R18, R4 ;",
            f"\t\tFunction : {SAMPLE}",
            "        /*0010*/                   FADD R4, R8, R16 ;",
            "\tcode for sm_90a",
            f"\t\tFunction : {MOE_UP}",
            "        /*0010*/              @!P0 HGMMA.64x8x16.F32.BF16 R24, gdesc[UR4], R24 ;",
        ]
    )
    assert tensor_instructions(code) == {
        (MOE_UP, "sm_80"): {"HMMA": 2},
        (SAMPLE, "sm_80"): {},
        (MOE_UP, "sm_90a"): {"HGMMA": 1},
    }


def usage(**changes: int) -> dict[str, int]:
    return {
        "registers": 64,
        "stack": 0,
        "spill_stores": 0,
        "spill_loads": 0,
        "shared": 0,
        "tensor": 8,
    } | changes


@pytest.mark.parametrize(
    ("kernel", "changes", "says"),
    [
        ("sample", {"spill_stores": 4}, "spills"),
        ("sample", {"spill_loads": 8}, "spills"),
        ("moe_up<4>", {"tensor": 0}, "no tensor-core"),
    ],
)
def test_a_fault_is_named(kernel, changes, says):
    right = {kernel: {"sm_80": usage(), "sm_120a": usage()}}
    assert faults(right) == []
    right[kernel]["sm_120a"] |= changes
    (fault,) = faults(right)
    assert says in fault
    assert kernel in fault
    assert "sm_120a" in fault


def test_stack_alone_and_kernels_without_products_are_no_fault():
    assert faults({"sample": {"sm_80": usage(stack=16, tensor=0)}}) == []


def test_the_table_is_ordered_by_architecture():
    rows = {"sm_120a": usage(), "sm_80": usage(registers=70, stack=16, spill_loads=4), "sm_90a": usage()}
    _, heading, row = layout({"moe_up<1>": rows}).splitlines()
    assert heading.split() == ["kernel", "sm_80", "sm_90a", "sm_120a"]
    assert row.startswith("moe_up<1>  70 16s 4! 8m")


def test_the_log_of_a_compilation_is_kept(tmp_path):
    """keep_ptxas_log.py: the report beside the object, everything else on stderr, the exit status."""
    report = ptxas(MOE_UP, "sm_80", 96)
    script = f"import sys; sys.stderr.write({'x.cu(3): warning: unused' + chr(10) + report!r}); sys.exit(3)"
    command = [sys.executable, ROOT / "tools/keep_ptxas_log.py", sys.executable, "-c", script]
    done = subprocess.run([*command, "-o", tmp_path / "x.o"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "x.cu(3): warning: unused\n")
    assert (tmp_path / "x.o.ptxas").read_text() == report


def test_loads_before_the_wait_are_counted():
    code = """
    code for sm_90a
        Function : one
        /*0010*/   LDG.E.NA.128 R4, desc[UR6][R4.64] ;
        /*0020*/   LDG.E R8, desc[UR6][R6.64] ;
        /*0030*/   ACQBULK ;
        /*0040*/   LDG.E R9, desc[UR6][R6.64] ;
        /*0050*/   ACQBULK ;
        Function : two
        /*0010*/   ACQBULK ;
        /*0020*/   LDG.E R9, desc[UR6][R6.64] ;
    code for sm_80
        Function : one
        /*0010*/   LDG.E R9, desc[UR6][R6.64] ;
    """
    assert early_loads(code) == {("one", "sm_90a"): 2, ("two", "sm_90a"): 0}
    late = {"unembed<8>": {"sm_90a": usage(tensor=8) | {"early": 0}}}
    assert "unembed<8> on sm_90a loads nothing before it waits" in faults(late)[0]
    assert faults({"sample": {"sm_90a": usage(tensor=0) | {"early": 0}}}) == []
