"""Runs a compiler and keeps what ptxas says beside the object file: `keep_ptxas_log.py nvcc ... -o X ...`.

The report goes to X.ptxas, so that an incremental build has it for every object; other output is passed on.
Standard library only: it runs in the Python that builds the package.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Of `ptxas -v`: its own lines, the indented line of stack and spills, and the heading of that line.
REPORT = re.compile(r"ptxas info\b|\s*\d+ bytes stack frame|Function properties for ")


def main() -> int:
    command = sys.argv[1:]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    lines = done.stderr.splitlines(keepends=True)
    if "-o" in command:
        log = Path(command[command.index("-o") + 1] + ".ptxas")
        log.write_text("".join(line for line in lines if REPORT.match(line)))
    sys.stderr.writelines(line for line in lines if not REPORT.match(line))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
