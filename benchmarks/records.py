"""records: list and get of metald with 1,000 VM records while ten lifecycle calls a second run.

metald and assetmanagerd are processes on loopback with the fake driver: the calls make real
processes in real namespaces and cgroups. The records are VMs that have ended, with labels and a
whole history; they are in the store before metald starts. The reference is the same without the
lifecycle calls: what the load costs, not a goal.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import Connection

from benchmarks.frame import Benchmark, Outcome
from benchmarks.lifecycle_load import CALLS_A_SECOND
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.metald import decide, store
from ironworks.metald.types import Readiness, Resources, Vm, VmState
from ironworks.model.errors import Internal
from ironworks.model.ids import derived_id
from ironworks.model.units import MIB, NS_PER_MS, NS_PER_SECOND
from ironworks.runtime.clock import SystemClock
from ironworks.storage.sql import Database, sqlite_url
from ironworks.testkit.metald.processes import Platform, started_platform
from ironworks.testkit.metald.values import TENANT, vm_spec

RECORDS = 1000
GOAL_P99_MS = 20.0
LEAST_OF_LOAD = 0.9
"""Of the calls that were to be made: with fewer the figures would flatter."""
_CLOCK = SystemClock()
_LIFE = (
    VmState.CREATING,
    VmState.CREATED,
    VmState.BOOTING,
    VmState.RUNNING,
    VmState.STOPPING,
    VmState.STOPPED,
)


def vm_id_of(number: int) -> str:
    """The id of a record."""
    return derived_id("vm", "record", str(number))


def _seed(connection: Connection) -> None:
    for number in range(RECORDS):
        vm = Vm(
            vm_id=vm_id_of(number),
            tenant_id=TENANT,
            spec=vm_spec(
                name=f"record-{number}",
                readiness=Readiness(port=8080),
                labels={"app": f"app-{number % 10}", "tier": "web"},
            ),
            state=VmState.REQUESTED,
            reason="Admitted.",
            generation=1,
            created_at_ns=NS_PER_SECOND + number,
            state_changed_at_ns=NS_PER_SECOND + number,
            slot=None,
            driver="fake",
            accel="none",
            committed=Resources(vcpus=1, memory_bytes=64 * MIB, vms=1),
        )
        store.insert_vm(connection, vm, vm.reason)
        for state in _LIFE:
            moved, line = decide.transition(vm, state, "A step of its life.", now_ns=number)
            store.update_vm(connection, moved, decided_on=vm.generation, line=line)
            vm = moved


async def _with_records(platform: Platform) -> None:
    """Put the records into the store of a metald that is not running, and start it again."""
    platform.stop("metald")
    database = Database(sqlite_url(platform.settings.own_dir / "metald.db"))
    try:
        await database.write(_seed)
    finally:
        await asyncio.to_thread(database.close)
    platform.start("metald")
    await platform.ready("metald")


async def _times(platform: Platform, seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds of each list and each get, one after the other, for as long."""
    vms = platform.vms()
    ends_ns = _CLOCK.monotonic_ns() + int(seconds * NS_PER_SECOND)
    lists: list[float] = []
    gets: list[float] = []
    number = 0
    while _CLOCK.monotonic_ns() < ends_ns:
        number += 1
        get = vm_pb.GetVmRequest(vm_id=vm_id_of(number * 7 % RECORDS))
        lists.append(await _time(lambda: vms.list_vms(vm_pb.ListVmsRequest())))
        gets.append(await _time(lambda one=get: vms.get_vm(one)))
        await _CLOCK.sleep(0.01)
    return lists, gets


async def _time(call: Callable[[], Awaitable[object]]) -> float:
    began_ns = _CLOCK.monotonic_ns()
    await call()
    return (_CLOCK.monotonic_ns() - began_ns) / NS_PER_MS


def p99(values: list[float]) -> float:
    """What 99 of 100 stay below."""
    return statistics.quantiles(values, n=100)[98]


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Measure alone, then under load."""
    seconds = 8.0 if quick else 60.0
    with (
        tempfile.TemporaryDirectory(prefix="records-") as directory,
        started_platform(Path(directory)) as platform,
    ):
        await platform.serve_rootfs()
        await _with_records(platform)
        await _times(platform, 1)  # what is done once only is no cost of a call
        gc.freeze()  # metald's pauses are measured, not those of whoever measures
        alone = await _times(platform, seconds / 4)
        load = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.lifecycle_load"),
            *(platform.rootfs_id, str(seconds + 2)),
            env=platform.env,
            stdout=asyncio.subprocess.PIPE,
        )
        await _CLOCK.sleep(2)
        lists, gets = await _times(platform, seconds)
        output, _ = await load.communicate()
    if load.returncode != 0:
        raise Internal("The load ended with a fault; see above.")
    calls_a_second = json.loads(output)["calls"] / (seconds + 2)
    worst = max(p99(lists), p99(gets))
    enough = calls_a_second >= LEAST_OF_LOAD * CALLS_A_SECOND
    return Outcome(
        ours=worst,
        reference=max(p99(one) for one in alone),
        passed=worst < GOAL_P99_MS and enough,
        details={
            "records": RECORDS,
            "lifecycle_calls_a_second": round(calls_a_second, 1),
            "list_ms_p50": round(statistics.median(lists), 2),
            "list_ms_p99": round(p99(lists), 2),
            "get_ms_p50": round(statistics.median(gets), 2),
            "get_ms_p99": round(p99(gets), 2),
            "calls_measured": len(lists) + len(gets),
        },
    )


BENCHMARK = Benchmark(
    name="records",
    unit="ms (p99 of list and get)",
    goal=f"p99 < {GOAL_P99_MS:g} ms with 1,000 records and 10 lifecycle calls a second",
    measure=measure,
)
