"""A real `gptoss-native serve` of the demo model, for the vendors' own clients: `make test-extras`.

The clients live in an environment of their own; GPTOSS_COMMAND names the program that serves.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

KEY = "secret"


@pytest.fixture(scope="session")
def address():
    command = os.environ.get("GPTOSS_COMMAND") or shutil.which("gptoss-native")
    if command is None:
        pytest.skip("GPTOSS_COMMAND names no program")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--api-key", KEY, "--max-model-len", "2048"]
    server = subprocess.Popen([command, "serve", "demo", *options])
    try:
        for _ in range(300):
            try:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/health", headers={"x-api-key": KEY}
                )
                urllib.request.urlopen(request, timeout=1)
                break
            except OSError:
                assert server.poll() is None, "the server has ended"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        assert server.wait(60) in (0, -signal.SIGTERM)
