"""What `import gptoss_native` costs beside `import numpy`, in fresh processes, A B A B.

    python -m bench.startup [RUNS]

Prints the median and the spread of the CPU milliseconds of each, and of the difference.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CLOCK = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"


def milliseconds(modules: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", CLOCK.format(modules)], capture_output=True, text=True, check=True
    )
    return float(done.stdout) * 1e3


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    pairs = [(milliseconds("numpy"), milliseconds("numpy, gptoss_native")) for _ in range(runs)]
    columns = {
        "numpy": [numpy for numpy, _ in pairs],
        "numpy, gptoss_native": [both for _, both in pairs],
        "gptoss_native alone": [both - numpy for numpy, both in pairs],
    }
    for name, values in columns.items():
        low, high = min(values), max(values)
        print(f"{name:22} {statistics.median(values):7.1f} ms CPU  ({low:.1f} to {high:.1f}, {runs} runs)")


if __name__ == "__main__":
    main()
