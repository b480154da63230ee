"""What schemathesis makes of /openapi.json: whatever it sends, the server itself never fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("schemathesis")


def test_no_request_makes_the_server_fail(address):
    program = shutil.which("schemathesis", path=Path(sys.executable).parent)
    options = ["--checks", "not_a_server_error", "--max-examples", "60", "-H", "Authorization: Bearer secret"]
    done = subprocess.run(
        [program, "run", f"{address}/openapi.json", *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
