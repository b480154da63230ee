"""A backend whose threads cannot start, fail at work or stay behind in a fork ends in an error, never in a
hang or a dead process. Each case runs in a process of its own, whose exit and last line are the oracle."""

import os
import subprocess
import sys

import pytest

START = """
import os, resource, warnings
import numpy as np
from gptoss_native import _native
from gptoss_native.errors import GptossError

def embed(backend):
    backend.embed(np.zeros(8, np.int32), np.zeros((1, 32), np.uint16), np.empty((8, 32), np.float32))

def leave_memory(megabytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20),) * 2)
"""

NO_MORE_THREADS = """
leave_memory(200)
try:
    _native.Backend(threads=1024)
except GptossError as error:
    print("refused:", error)
embed(_native.Backend(threads=2))
"""

TASK_WITHOUT_MEMORY = """
backend, vocab = _native.Backend(threads=2), 4_000_000
logits, rows = np.zeros((4, vocab), np.float32), np.zeros(4, _native.sample_row_dtype)
for name in ("top_p", "repetition_penalty"):
    rows[name] = 1
rows["mask_row"] = -1
lists = np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int32), None
backend.sample(logits, rows, *lists, 0)  # takes the scratch memory, but not the list a worker sorts
leave_memory(4)
try:
    backend.sample(logits, rows, *lists, 1)
except MemoryError:
    print("refused: out of memory")
embed(backend)
"""

FORKED = """
warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is the point
backend = _native.Backend(threads=2)
embed(backend)
child = os.fork()
if child:
    status = os.waitpid(child, 0)[1]
    embed(backend)
    raise SystemExit(os.waitstatus_to_exitcode(status))
try:
    embed(backend)
except GptossError as error:
    print("refused:", error)
embed(_native.Backend(threads=2))
del backend
"""


@pytest.mark.parametrize(
    ("script", "says"),
    [(NO_MORE_THREADS, "of 1024 threads"), (TASK_WITHOUT_MEMORY, "out of memory"), (FORKED, "forked")],
    ids=["no more threads", "a task without memory", "forked"],
)
def test_what_goes_wrong_is_said(script, says):
    result = subprocess.run(
        [sys.executable, "-c", START + script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "refused:" in result.stdout, result.stdout
    assert says in result.stdout
