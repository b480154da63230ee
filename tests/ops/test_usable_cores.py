"""How many threads `threads=0` starts: the affinity mask and CPU quotas of control groups, in a tree of files
laid out as Linux documents them (admin-guide/cgroup-v2 and scheduler/sched-bwc)."""

import os

import pytest
from gptoss_native import _native

CORES = len(os.sched_getaffinity(0))


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, 1 << 20),
        ({"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": "max 100000"}, 1 << 20),
        ({"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": "120000 100000"}, 2),
        # a group above has the smaller quota
        (
            {
                "proc/self/cgroup": "0::/a/b/c",
                "sys/fs/cgroup/a/b/c/cpu.max": "900000 100000",
                "sys/fs/cgroup/a/cpu.max": "20000 20000",
            },
            1,
        ),
        # a container: the path is the host's, the mount is the container's own group
        ({"proc/self/cgroup": "0::/host/slice/x", "sys/fs/cgroup/cpu.max": "30000 100000"}, 1),
        # version 1, beside a version 2 tree without controllers
        (
            {
                "proc/self/cgroup": "5:cpuset:/\n3:cpu,cpuacct:/job\n0::/job",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            1 << 20,
        ),
        ({"proc/self/cgroup": "nonsense\n0::\n::::", "sys/fs/cgroup/cpu.max": "many"}, 1 << 20),
    ],
)
def test_the_quota_rounded_up_limits_the_cores(tmp_path, files, quota):
    assert _native.usable_cores(root=write(tmp_path, files)) == min(CORES, quota)


def test_threads_0_keeps_to_the_affinity_mask():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert _native.usable_cores() == 1
        assert _native.Backend(threads=0).threads == 1
        assert _native.Backend(threads=2).threads == 2  # what is asked for is not limited
    finally:
        os.sched_setaffinity(0, before)
    assert _native.Backend(threads=0).threads == _native.usable_cores() <= CORES
