"""The README's Python, run from top to bottom. Oracle: sums that the bundled model is sure to get right."""

import json
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_python_of_the_readme_runs():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))
    assert "LLM(" in code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-4:-1] == ["42", "408", "['357', '72']"]
    assert re.fullmatch(r"[0-9]{1,6}", json.loads(lines[-1])["sum"])
