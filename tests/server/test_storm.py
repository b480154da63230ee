"""A short storm; `python -m tests.server.storm` is the long one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import httpx

from .storm import storm


def test_a_storm_leaves_nothing_behind(rng):
    found, stats, _ = storm(300, 64, int(rng.integers(1 << 32)))
    assert not found.wrong, found.wrong[0]
    assert sum(found.ends.values()) == 300
    assert stats["preemptions"] > 0
    left = ("running", "waiting", "kv_pages_used", "kv_window_pages_used")
    assert {name: stats[name] for name in left} == dict.fromkeys(left, 0)


def test_a_server_that_is_told_to_end_finishes_what_runs(unused_port):
    """SIGTERM while an answer is streamed: it comes to its end, and the process too."""
    command = [sys.executable, "-m", "gptoss_native", "serve", "demo", "--port", str(unused_port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        base = f"http://127.0.0.1:{unused_port}"
        for _ in range(300):
            try:
                assert httpx.get(f"{base}/health").status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.1)
        body = {"prompt": "1, 2, 3", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=120) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(server.pid, signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.wait(60) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.communicate()
