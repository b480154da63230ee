"""The README's Python, run from top to bottom. Oracle: sums that the bundled model is sure to get right."""

import ast
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
    assert lines[-6:-3] == ["42", "408", "['357', '72']"]
    assert re.fullmatch(r"[0-9]{1,6}", json.loads(lines[-3])["sum"])
    assert "model.layers.1.mlp.experts.7.down_proj" in lines[-2]
    edited, (plain, spared) = lines[-2].split(" ", 1)[0], ast.literal_eval(lines[-1])
    assert plain == "777"
    assert "777" not in (edited, spared)
