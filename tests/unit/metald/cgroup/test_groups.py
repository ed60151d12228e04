import asyncio
import os
import subprocess
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns

import pytest

from ironworks.metald.cgroup.groups import Group, GroupLimits, HostGroups, disk_of
from ironworks.metald.sampling.sources import cpu_nanoseconds, open_source
from ironworks.metald.sampling.types import AbsenceReason
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


BUSY = ("/usr/bin/python3", "-I", "-S", "-c", "while True: pass")
HOLD = "held = bytearray(b'x' * (16 << 20)); print('held', flush=True); input()"
READ = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
room = mmap.mmap(-1, 65536)
began = time.monotonic()
while os.readv(fd, [room]):
    pass
print(time.monotonic() - began)
"""


def joined(group: Group, *argv: str) -> subprocess.Popen[bytes]:
    """A program that is in a group from its first instruction."""
    paths = " ".join(str(path) for path in group.join_paths)
    script = f'for one in {paths}; do echo $$ > $one; done; exec "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def cpu_ns(group: Group) -> int:
    """CPU time that a group has used."""
    text = group.cpu_file.read_text()
    for line in text.splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) * 1000
    return int(text)


async def used_in(group: Group, seconds: float) -> float:
    """Share of one CPU that a group uses."""
    began_ns, before = perf_counter_ns(), cpu_ns(group)
    await asyncio.sleep(seconds)
    return (cpu_ns(group) - before) / (perf_counter_ns() - began_ns)


async def test_a_quota_holds_whatever_the_program_does(groups: HostGroups) -> None:
    group = await groups.create("vm_q", replace(LIMITS, cpus=0.25))
    with joined(group, *BUSY):
        await asyncio.sleep(0.3)
        assert await used_in(group, 1.0) < 0.35
        await groups.create("vm_q", replace(LIMITS, cpus=0.1))
        await asyncio.sleep(0.3)
        assert await used_in(group, 1.0) < 0.2
        await groups.remove("vm_q")


async def test_memory_and_cpu_time_are_read_from_a_real_group(groups: HostGroups) -> None:
    group = await groups.create("vm_s", LIMITS)
    memory = open_source(str(group.memory_file))
    cpu = open_source(str(group.cpu_file), cpu_nanoseconds)
    before_ns, before = cpu.read(), memory.read()
    with joined(group, "/usr/bin/python3", "-I", "-S", "-c", HOLD) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert memory.read() > before + 16 * MIB
        assert cpu.read() - before_ns > 10_000_000
        await groups.remove("vm_s")
    assert (memory.read(), cpu.read()) == (-AbsenceReason.GONE, -AbsenceReason.GONE)
    memory.close()
    cpu.close()


async def test_weights_divide_a_cpu_that_both_want(groups: HostGroups) -> None:
    light = await groups.create("vm_l", replace(LIMITS, cpu_weight=100))
    heavy = await groups.create("vm_h", replace(LIMITS, cpu_weight=800))
    cpu = min(os.sched_getaffinity(0))
    pinned = ("taskset", "-c", str(cpu), *BUSY)
    with joined(light, *pinned), joined(heavy, *pinned):
        await asyncio.sleep(0.3)
        before = cpu_ns(light), cpu_ns(heavy)
        await asyncio.sleep(2.0)
        assert cpu_ns(heavy) - before[1] > 3 * (cpu_ns(light) - before[0])
        await groups.remove("vm_l")
        await groups.remove("vm_h")


async def test_a_disk_limit_holds(groups: HostGroups, tmp_path: Path) -> None:
    disk = disk_of(tmp_path)
    if not disk:
        pytest.skip("The directory of tests is on no disk.")
    file = tmp_path / "file"
    with file.open("wb") as opened:
        opened.write(os.urandom(2 * MIB))
        opened.flush()
        os.fsync(opened.fileno())
    limited = replace(LIMITS, disk_device=disk, disk_bytes_per_second=MIB)
    group = await groups.create("vm_d", limited)

    def read_seconds() -> float:
        with joined(group, "/usr/bin/python3", "-I", "-S", "-c", READ, str(file)) as process:
            return float(process.communicate()[0])

    assert await asyncio.to_thread(read_seconds) > 1.5
    await groups.create("vm_d", LIMITS)
    await groups.create("vm_d", replace(limited, disk_bytes_per_second=0))
    assert await asyncio.to_thread(read_seconds) < 1.5


def test_a_directory_that_is_on_no_disk_has_none() -> None:
    assert disk_of(Path("/proc")) == ""
