"""footprint: memory of the whole idle platform, and of each VM record that metald keeps.

PSS (proportional set size, `smaps_rollup`) shares what processes share; summed over supervisor, six
services and Envoy it is what the platform really takes from the machine. There is no reference: the
goal is absolute.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.frame import Benchmark, Outcome, median, spread
from ironworks.cli.deploy import DeploySpec, deploy
from ironworks.gen.ironworks.gatewayd.v1 import roles_pb
from ironworks.machine.platform import PlatformFile
from ironworks.machine.temporary import temporary_platform
from ironworks.model.units import MIB
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.images import build_sample_layout

GOAL_MIB = 800
GOAL_KIB_PER_VM = 256
SETTLE_SECONDS = 10
QUICK_SETTLE_SECONDS = 4
KIB_PER_MIB = 1024


def pss_kib(pid: int) -> int:
    """PSS of a process, in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def measure_once(platform: PlatformFile) -> dict[str, float]:
    """PSS in MiB of each part."""
    parts = {"supervisor": pss_kib(platform.pid) / KIB_PER_MIB}
    for name, pid in platform.pids.items():
        parts[name] = sum(pss_kib(one) for one in tree(pid)) / KIB_PER_MIB
    return parts


async def deploy_idle(platform: PlatformFile, name: str, count: int) -> str:
    """`count` VMs of the fake driver: real namespaces and cgroups, nothing that runs in them.

    Answers the API key of their tenant.
    """
    data_dir = Path(platform.data_dir)
    async with AsyncIronworks(data_dir=data_dir) as operator:
        tenant = await operator.tenants.create(name)
        roles = [roles_pb.Role.OWNER]
        key = await operator.keys.create(name, roles=roles, tenant_id=tenant.tenant_id)
    image = build_sample_layout(data_dir / "images" / "sample")
    spec = DeploySpec(image=image, replicas=count, memory_bytes=64 * MIB)
    async with AsyncIronworks(platform.api_url, key.secret, platform.ca_file) as api:
        await deploy(api, spec)
    return key.secret


async def per_vm_kib(*, quick: bool) -> float:
    """What metald grows by with each VM that it keeps."""
    count = 10 if quick else 50
    settle_seconds = QUICK_SETTLE_SECONDS if quick else SETTLE_SECONDS
    # Idle VMs: as many as the benchmark wants, whatever the machine has.
    env = {"IRONWORKS_DRIVER": "fake", "IRONWORKS_CPU_OVERCOMMIT": "100"}
    async with temporary_platform("bench", env) as platform:
        pid = platform.pids["metald"]
        # The first VM brings in code and pools that all others share.
        await deploy_idle(platform, "first", 1)
        await asyncio.sleep(settle_seconds)
        before_kib = pss_kib(pid)
        await deploy_idle(platform, "others", count)
        await asyncio.sleep(settle_seconds)
        return (pss_kib(pid) - before_kib) / count


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Start a platform, let it settle, sum; then see what VMs add to metald."""
    samples: list[dict[str, float]] = []
    settle_seconds = QUICK_SETTLE_SECONDS if quick else SETTLE_SECONDS
    async with temporary_platform("bench") as platform:
        for _ in range(1 if quick else 6):
            await asyncio.sleep(settle_seconds)
            samples.append(measure_once(platform))
    totals = [sum(sample.values()) for sample in samples]
    total, each_kib = median(totals), await per_vm_kib(quick=quick)
    return Outcome(
        ours=total,
        reference=None,
        passed=total <= GOAL_MIB and each_kib <= GOAL_KIB_PER_VM,
        details={
            "spread": spread(totals),
            "parts_mib": {name: round(value, 1) for name, value in samples[-1].items()},
            "metald_kib_per_idle_vm": round(each_kib, 1),
        },
    )


BENCHMARK = Benchmark(
    name="footprint",
    unit="MiB PSS",
    goal=f"whole idle platform <= {GOAL_MIB} MiB; <= {GOAL_KIB_PER_VM} KiB more per VM record",
    measure=measure,
)
