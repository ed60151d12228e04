"""`python -m benchmarks.lifecycle_load ROOTFS_ASSET_ID SECONDS`: ten lifecycle calls a second.

In a process of its own, so that it does not slow down whoever measures. Ends with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from protobuf import Oneof

from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceClient
from ironworks.metald.settings import MetaldSettings
from ironworks.model.ids import new_id
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime.clock import SystemClock, SystemEntropy
from ironworks.runtime.identity import ServiceSigner
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.settings import load
from ironworks.runtime.tasks import Tasks
from ironworks.testkit.metald.values import TENANT

CALLS_A_SECOND = 10
VMS_AT_ONCE = 6
_CLOCK, _ENTROPY = SystemClock(), SystemEntropy()
_T = TypeVar("_T")


def clients(settings: MetaldSettings) -> Clients:
    """Clients that call as gatewayd."""
    signer = ServiceSigner.load(settings.data_dir, "gatewayd", settings.trust_domain, _CLOCK)
    return Clients(settings=settings, signer=signer)


class _OverError(Exception):
    """The time is over."""


class Load:
    """VMs that are made, booted, paused, resumed, stopped and deleted, one call each tick."""

    def __init__(self, vms: VmServiceClient, rootfs_id: str) -> None:
        self._vms = vms
        self._rootfs_id = rootfs_id
        self._ticks: asyncio.Queue[None] = asyncio.Queue()
        self._is_over = False
        self.calls = 0

    async def run(self, seconds: float) -> None:
        """Call for as long."""
        async with Tasks() as tasks:
            workers = [tasks.start(self._work(), name=f"vm {n}") for n in range(VMS_AT_ONCE)]
            ends_ns = _CLOCK.monotonic_ns() + int(seconds * NS_PER_SECOND)
            while _CLOCK.monotonic_ns() < ends_ns:
                self._ticks.put_nowait(None)
                await _CLOCK.sleep(1 / CALLS_A_SECOND)
                for worker in workers:
                    if worker.done():
                        worker.result()
            # Not cancelled: a call that is just being answered would swallow that and go on.
            self._is_over = True
            for _ in workers:
                self._ticks.put_nowait(None)
            await asyncio.gather(*workers)

    async def _work(self) -> None:
        with suppress(_OverError):
            while True:
                await self._live()

    async def _live(self) -> None:
        vms = self._vms
        vm_id = new_id("vm", _CLOCK, _ENTROPY)
        spec = vm_pb.VmSpec(
            vcpus=1,
            memory_bytes=64 * MIB,
            assets=vm_pb.VmAssets(rootfs_asset_id=self._rootfs_id),
            readiness=vm_pb.ReadinessCheck(probe=Oneof("tcp_port", 8080)),
        )
        await self._call(vms.create_vm, vm_pb.CreateVmRequest(vm_id=vm_id, spec=spec))
        await self._call(vms.boot_vm, vm_pb.BootVmRequest(vm_id=vm_id))
        await self._call(vms.pause_vm, vm_pb.PauseVmRequest(vm_id=vm_id))
        await self._call(vms.resume_vm, vm_pb.ResumeVmRequest(vm_id=vm_id))
        await self._call(vms.shutdown_vm, vm_pb.ShutdownVmRequest(vm_id=vm_id))
        await self._call(vms.delete_vm, vm_pb.DeleteVmRequest(vm_id=vm_id))

    async def _call(self, call: Callable[[_T], Awaitable[vm_pb.Vm]], request: _T) -> None:
        await self._ticks.get()
        if self._is_over:
            raise _OverError
        await call(request)
        self.calls += 1


async def main(rootfs_id: str, seconds: float) -> None:
    """Entry point."""
    vms = clients(load(MetaldSettings)).of(
        VmServiceClient, "metald", tenant_id=TENANT, timeout_seconds=60
    )
    made = Load(vms, rootfs_id)
    await made.run(seconds)
    sys.stdout.write(json.dumps({"calls": made.calls}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
