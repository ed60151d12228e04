from pathlib import Path

import pytest

from ironworks.model.errors import FailedPrecondition
from ironworks.runtime.cgroup_layout import parse_layout

V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
HYBRID = (
    "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
    "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
    "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n"
    "cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n"
    "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
)


def test_v2_with_its_controllers_is_all_that_is_needed() -> None:
    layout = parse_layout(V2, {Path("/sys/fs/cgroup"): "cpuset cpu io memory pids\n"})
    assert layout.name == "v2"
    assert layout.roots == (Path("/sys/fs/cgroup"),)


def test_a_hybrid_joins_each_hierarchy_once_and_the_unified_one_too() -> None:
    layout = parse_layout(HYBRID, {Path("/sys/fs/cgroup/unified"): "\n"})
    assert layout.name == "hybrid"
    assert layout.roots == (
        Path("/sys/fs/cgroup/cpu,cpuacct"),
        Path("/sys/fs/cgroup/memory"),
        Path("/sys/fs/cgroup/pids"),
        Path("/sys/fs/cgroup/unified"),
    )


def test_a_machine_without_a_controller_is_told_which() -> None:
    without = HYBRID.replace("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n", "")
    with pytest.raises(FailedPrecondition, match="memory"):
        parse_layout(without, {})
    with pytest.raises(FailedPrecondition, match="cpu, memory, pids"):
        parse_layout(V2, {Path("/sys/fs/cgroup"): "io\n"})
