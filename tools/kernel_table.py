"""What every CUDA kernel takes on every architecture, from the object files of a build.

    cmake --build build/cuda --target kernels

Writes OUTPUT.txt and OUTPUT.json and prints the table. Registers, static shared memory, stack and spills are
ptxas's (kept in X.o.ptxas by keep_ptxas_log.py), tensor-core instructions are counted in the machine code.
Exits with 1 when a kernel spills registers, or when one that multiplies matrices has no tensor-core
instruction, or when one that is to load weights before it waits for the kernel before it does not: ptxas is
free to move loads behind that wait. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

# Kernels whose work is matrix products; each must use the tensor cores on every architecture.
MATRIX = {"attention_in", "attention_out", "paged_attention", "moe_up", "moe_down", "unembed"}

# Machine instructions of the tensor cores: mma.sync on sm_80 and later, wgmma on sm_90a, tcgen05 on sm_100a.
TENSOR = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|QMMA|QGMMA|OMMA|UTCQMMA|UTCOMMA)\b")

# Kernels that load weights before griddepcontrol.wait, ACQBULK in machine code of sm_90 and later.
EARLY = {"attention_in", "norm_attention_in", "attention_out", "moe_gate", "moe_down", "unembed"}
WAIT, LOAD = re.compile(r"\bACQBULK\b"), re.compile(r"\bLDG\b")

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")

Usage = dict[str, int]  # bytes, registers or instructions by what they are
Table = dict[str, dict[str, Usage]]  # by kernel, by architecture


def short_name(mangled: str) -> str:
    """`moe_up<4>` of the mangled name of moe_up_kernel<4>; other names as they are."""
    before, suffix, after = mangled.partition("_kernel")
    # A name follows its length; the shortest that fits is it.
    for start in range(len(before) - 1, 0, -1):
        length = str(len(before) - start + len(suffix))
        if suffix and before[start].isalpha() and before[:start].endswith(length):
            arguments = re.match(r"I((?:L\w\d+E|[a-z])+)E", after)
            numbers = re.findall(r"L\w(\d+)E", arguments[1]) if arguments else []
            return before[start:] + (f"<{', '.join(numbers)}>" if numbers else "")
    return mangled


def read_log(text: str) -> Table:
    """The report of `ptxas -v`. Raises ValueError when a kernel has no complete entry in it."""
    table: Table = {}
    for entry in re.split(r"(?=ptxas info\s*: Compiling entry function)", text)[1:]:
        kernel, architecture = ENTRY.search(entry).groups()
        stack, registers, shared = STACK.search(entry), REGISTERS.search(entry), SHARED.search(entry)
        if not stack or not registers:
            raise ValueError(f"ptxas said nothing about {kernel} on {architecture}")
        usage = dict(zip(("stack", "spill_stores", "spill_loads"), map(int, stack.groups()), strict=True))
        usage |= {"registers": int(registers[1]), "shared": int(shared[1]) if shared else 0}
        table.setdefault(kernel, {})[architecture] = usage
    return table


def tensor_instructions(machine_code: str) -> dict[tuple[str, str], Counter]:
    """By (kernel, architecture), from the text of `cuobjdump -sass`."""
    counts: dict[tuple[str, str], Counter] = {}
    architecture, here = "", Counter()
    for line in machine_code.splitlines():
        if found := re.match(r"\s*code for (sm_\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function : (\S+)", line):
            here = counts.setdefault((found[1], architecture), Counter())
        elif found := TENSOR.search(line):
            here[found[1]] += 1
    return counts


def early_loads(machine_code: str) -> dict[tuple[str, str], int]:
    """Loads before the wait for the kernel before, by (kernel, architecture), where there is such a wait."""
    counts: dict[tuple[str, str], int] = {}
    architecture, kernel, loads = "", "", 0
    for line in machine_code.splitlines():
        if found := re.match(r"\s*code for (sm_\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function : (\S+)", line):
            kernel, loads = found[1], 0
        elif LOAD.search(line):
            loads += 1
        elif WAIT.search(line):
            counts.setdefault((kernel, architecture), loads)
    return counts


def read_object(path: Path, cuobjdump: str) -> Table:
    table = read_log(Path(f"{path}.ptxas").read_text())
    if not table:
        return table
    code = subprocess.run([cuobjdump, "-sass", path], capture_output=True, text=True, check=True).stdout
    for (kernel, architecture), counts in tensor_instructions(code).items():
        table[kernel][architecture]["tensor"] = counts.total()
        table[kernel][architecture] |= counts
    for (kernel, architecture), loads in early_loads(code).items():
        table[kernel][architecture]["early"] = loads
    return {short_name(kernel): rows for kernel, rows in table.items()}


def faults(table: Table) -> list[str]:
    """One sentence for everything that must not be."""
    found = []
    for kernel, rows in sorted(table.items()):
        for architecture, usage in rows.items():
            spilled = usage["spill_stores"] + usage["spill_loads"]
            if spilled:
                found.append(
                    f"{kernel} on {architecture} spills registers ({usage['spill_stores']} bytes of stores, "
                    f"{usage['spill_loads']} of loads), expected none; keep fewer values alive"
                )
            if "tensor" not in usage:
                found.append(f"{kernel} has no machine code for {architecture}")
            elif kernel.split("<")[0] in MATRIX and not usage["tensor"]:
                found.append(f"{kernel} on {architecture} has no tensor-core instruction, expected some")
            if kernel.split("<")[0] in EARLY and usage.get("early") == 0:
                found.append(f"{kernel} on {architecture} loads nothing before it waits, expected weights")
    return found


def cell(usage: Usage) -> str:
    """Registers, then what is not zero: s stack, S shared memory, ! spills, m tensor-core instructions."""
    spilled = usage["spill_stores"] + usage["spill_loads"]
    parts = [str(usage["registers"])]
    parts += [f"{usage['stack']}s"] if usage["stack"] else []
    parts += [f"{usage['shared']}S"] if usage["shared"] else []
    parts += [f"{spilled}!"] if spilled else []
    parts += [f"{usage['tensor']}m"] if usage.get("tensor") else []
    parts += [f"{usage['early']}e"] if usage.get("early") else []
    return " ".join(parts)


def layout(table: Table) -> str:
    architectures = sorted(
        {a for rows in table.values() for a in rows}, key=lambda a: int(re.sub(r"\D", "", a))
    )
    lines = [["kernel", *architectures]]
    for kernel, rows in sorted(table.items()):
        lines.append([kernel, *(cell(rows[a]) if a in rows else "-" for a in architectures)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
    legend = "Registers a thread; s: bytes of stack, S: bytes of static shared memory, !: bytes spilled, "
    legend += "m: tensor-core instructions, e: loads before the wait."
    return "\n".join([legend, *(row.rstrip() for row in rows)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("objects", type=Path, nargs="+")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument("--output", type=Path, required=True, help="without its ending")
    arguments = parser.parse_args()
    table: Table = {}
    for path in arguments.objects:
        for kernel, rows in read_object(path, arguments.cuobjdump).items():
            table[kernel] = rows
    if not table:
        print("the object files hold no kernels", file=sys.stderr)
        return 1
    text = layout(table)
    arguments.output.with_suffix(".txt").write_text(text)
    arguments.output.with_suffix(".json").write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(text, end="")
    for fault in (found := faults(table)):
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
