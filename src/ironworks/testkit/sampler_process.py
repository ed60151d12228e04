"""A sampler as a process that can be killed: `python -m ironworks.testkit.sampler_process DIR`.

`DIR/vm_*/cpu` and `memory` are the counters of its VMs. Its last word on what it knows to be safe
is in `DIR/acknowledged`: a line `seq` for every tick that billaged has acknowledged, in which every
VM had a sample.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from pathlib import Path

from ironworks.gen.ironworks.billaged.v1 import samples_pb
from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterServiceClient
from ironworks.metald.sampling.sampler import HostSampler
from ironworks.metald.sampling.stream import MetricsStream, Origin
from ironworks.metald.sampling.types import CgroupFiles, VmSource
from ironworks.model.units import GIB
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import ServiceSigner
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.settings import Settings
from ironworks.runtime.tasks import Tasks

HOST_ID = "hst_killed"
TENANT_ID = "tnt_killed"
VCPUS = 8
_POLL_SECONDS = 0.02
_CLOCK = SystemClock()


class Watched:
    """A sink that remembers what was offered until it is acknowledged."""

    def __init__(self, stream: MetricsStream, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._offered: deque[tuple[int, int, int]] = deque()
        self._ordinal = 0

    def offer(self, tick: samples_pb.Tick) -> None:
        """Hand on."""
        self._stream.offer(tick)
        self._ordinal += 1
        self._offered.append((self._ordinal, tick.seq, len(tick.slots)))

    async def note(self, vms: int) -> None:
        """Write down what is acknowledged, for ever."""
        with self._path.open("a", buffering=1) as file:
            while True:
                safe = self._stream.acknowledged_ordinal
                while self._offered and self._offered[0][0] <= safe:
                    _, seq, count = self._offered.popleft()
                    if count == vms:
                        file.write(f"{seq}\n")
                await _CLOCK.sleep(_POLL_SECONDS)


async def main(directory: Path) -> None:
    """Sample until killed."""
    settings = Settings()
    signer = ServiceSigner.load(settings.data_dir, "metald", settings.trust_domain, _CLOCK)
    clients = Clients(settings=settings, signer=signer)
    stream = MetricsStream(
        origin=Origin(
            host_id=HOST_ID,
            host_boot_id="boot",
            run_id=SystemEntropy().token_bytes(8).hex(),
        ),
        connect=lambda: clients.of(MeterServiceClient, "billaged", timeout_seconds=None),
        clock=_CLOCK,
        entropy=SystemEntropy(),
    )
    sink = Watched(stream, directory / "acknowledged")
    vms = sorted(directory.glob("vm_*"))
    async with Tasks() as tasks:
        sampler = HostSampler(clock=_CLOCK, tasks=tasks, sink=sink)
        for files in vms:
            await sampler.attach(
                VmSource(
                    vm_id=files.name,
                    tenant_id=TENANT_ID,
                    boot_epoch=1,
                    vcpus=VCPUS,
                    memory_bytes=GIB,
                    cgroup=CgroupFiles(cpu=str(files / "cpu"), memory=str(files / "memory")),
                )
            )
        tasks.start(stream.run(), name="stream")
        tasks.start(sink.note(len(vms)), name="note")
        await sampler.run()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
