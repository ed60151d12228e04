import os
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from ironworks.metald.cgroup.groups import GroupLimits, HostGroups
from ironworks.model.units import MIB
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import tag_of

pytestmark = pytest.mark.root
LIMITS = GroupLimits(memory_bytes=64 * MIB, cpus=1.5, cpu_weight=100, pids=10)


def start(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stderr=subprocess.DEVNULL)


@pytest.fixture
async def groups(tmp_path: Path) -> AsyncGenerator[HostGroups]:
    groups = HostGroups(read_layout(), tag_of(tmp_path), SystemClock())
    yield groups
    for vm_id in await groups.present():
        await groups.remove(vm_id)


async def test_a_group_is_made_found_and_removed_with_what_is_in_it(groups: HostGroups) -> None:
    group = await groups.create("vm_a", LIMITS)
    assert await groups.present() == {"vm_a"}
    assert groups.missing("vm_a") == ()
    process = start("sleep", "600")
    for path in group.join_paths:
        path.write_text(str(process.pid))
    assert str(process.pid) in group.directories[0].joinpath("cgroup.procs").read_text()
    assert int(group.memory_file.read_text()) >= 0
    assert group.cpu_file.read_text()
    assert groups.oom_kills("vm_a") == 0
    await groups.remove("vm_a")
    assert process.wait(5) == -9
    assert await groups.present() == set()
    assert groups.missing("vm_a")
    await groups.remove("vm_a")


async def test_making_twice_changes_nothing_and_limits_are_set(groups: HostGroups) -> None:
    first = await groups.create("vm_a", LIMITS)
    assert await groups.create("vm_a", LIMITS) == first
    texts = {
        path.name: path.read_text().strip()
        for directory in first.directories
        for path in directory.iterdir()
        if path.name in {"memory.max", "memory.limit_in_bytes", "pids.max", "cpu.max"}
    }
    assert texts.get("memory.max", texts.get("memory.limit_in_bytes")) == str(64 * MIB)
    assert texts["pids.max"] == "10"


async def test_parents_go_with_the_last_vm_and_other_platforms_stay(
    groups: HostGroups, tmp_path: Path
) -> None:
    other = HostGroups(read_layout(), tag_of(tmp_path / "other"), SystemClock())
    await other.create("vm_b", LIMITS)
    group = await groups.create("vm_a", LIMITS)
    await groups.remove("vm_a")
    assert not group.directories[0].parent.exists()
    assert await other.present() == {"vm_b"}
    await other.remove("vm_b")


async def test_a_killed_process_is_counted(groups: HostGroups) -> None:
    group = await groups.create("vm_a", LIMITS)
    code = "import os,sys\nfor p in sys.argv[1:]: open(p,'w').write(str(os.getpid()))\n"
    code += "x=bytearray(1)*(256<<20)\n"
    process = start("python3", "-c", code, *map(os.fspath, group.join_paths))
    assert process.wait(30) == -9
    assert groups.oom_kills("vm_a") >= 1
