"""The recipes of docs/open-numbers.md, run from top to bottom. Oracle: what each of them says happens."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

DOC = Path(__file__).resolve().parents[2] / "docs" / "open-numbers.md"
ALL = {"add": 1.0, "compare": 1.0, "reverse": 1.0}


def test_every_recipe_does_what_it_says(capsys):
    text = DOC.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == len(re.findall(r"^## \d+\. ", text, re.MULTILINE)) + 1 == 12
    found: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"recipe {number}", "exec"), found)
        out = capsys.readouterr().out
        assert found["llm"].diff() == [], f"recipe {number} leaves an edit behind"
        if number == 0:
            assert eval(out) == ALL
    llm = found["llm"]
    assert found["row"].shape == (128,)
    assert found["usage"]["add"].shape == (4, 8)
    for name in ("without", "ablated", "unrouted"):
        assert found[name]["add"] < 0.3, name
        assert found[name]["compare"] == found[name]["reverse"] == 1, name
    assert found["restored"] == ALL
    assert found["report"].values == 1
    assert found["blind"]["compare"] < 0.5
    assert found["blind"]["add"] == found["blind"]["reverse"] == 1
    np.testing.assert_array_less(found["attention"].sum(axis=-1), 1 + 1e-5)
    assert found["steered"][0.5] == found["ADD"][0][1] != found["steered"][4]
    assert found["same"] is True
    assert found["applied"].name == "quieter layer 2"
    assert found["again"] == found["quieter"]
    assert found["merged"] == found["reloaded"] != ALL
    assert found["blinded"]["compare"] < 0.5
    assert found["plain"] == ALL
    assert dict(llm.adapters) == {}
