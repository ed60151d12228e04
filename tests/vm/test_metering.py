"""A real VM under a known load is metered as the host's own accounting says."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pyqwest import Client, HTTPTransport

from ironworks.cli.deploy import DeploySpec, deploy
from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
from ironworks.gen.ironworks.billaged.v1 import meter_pb
from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterServiceClient
from ironworks.gen.ironworks.gatewayd.v1 import roles_pb
from ironworks.machine.temporary import temporary_platform
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.rpc.direct import DIRECT
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.images import (
    SAMPLE_PORT,
    File,
    Image,
    Layer,
    cgi_scripts,
    make_tar,
    sample_image,
    static_busybox,
    symlink,
    write_image,
)

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.timeout(600)]

SAMPLED_SECONDS = 0.5
"""After it a sample has seen the end of the load."""
SENT_BYTES = 12 * MIB
READ_BYTES = 12 * MIB
SCRIPTS = {
    "cpu": "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo $i",
    "send": f"head -c {SENT_BYTES} /dev/zero",
    "read": "cat /blob >/dev/null; echo read",
}
METERS = {
    "cpu_ns": usage_pb.Meter.VCPU_USED,
    "disk_read_bytes": usage_pb.Meter.DISK_READ,
    "sent_bytes": usage_pb.Meter.NETWORK_OUT,
    "received_bytes": usage_pb.Meter.NETWORK_IN,
}
CLOCK = SystemClock()


def loaded_image() -> Image:
    """The sample, with scripts that use CPU, disk and network as told."""
    sample = sample_image(static_busybox(), "amd64")
    layer = [
        *cgi_scripts(SCRIPTS, "application/octet-stream"),
        symlink("bin/head", "busybox"),
        # Random, so that reading it from a compressed file system reads as much from the disk.
        File(name="blob", data=os.urandom(READ_BYTES)),
    ]
    return replace(sample, layers=[*sample.layers, Layer(tar=make_tar(layer))])


@dataclass(frozen=True, kw_only=True)
class Used:
    cpu_ns: int
    disk_read_bytes: int
    sent_bytes: int
    received_bytes: int


def vmm_pid(vm_id: str) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"guest={vm_id}".encode() in words and b"qemu-system" in words[0]:
            return int(entry.name)
    raise AssertionError(f"no VMM of {vm_id}")


def host_says(pid: int) -> Used:
    """CPU time and reads of the VMM's process, bytes of the tap in its network namespace."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    shown = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", "ip", "-json", "-statistics", "link", "show"],
        check=True,
        capture_output=True,
    )
    [tap] = [link["stats64"] for link in json.loads(shown.stdout) if "tap" in link["ifname"]]
    return Used(
        cpu_ns=ticks * NS_PER_SECOND // os.sysconf("SC_CLK_TCK"),
        disk_read_bytes=int(io["rchar"]),
        # What the guest sends is what the host reads from the tap.
        sent_bytes=tap["rx"]["bytes"],
        received_bytes=tap["tx"]["bytes"],
    )


@dataclass
class Metered:
    """What the platform says."""

    operator: AsyncIronworks
    api: AsyncIronworks
    billaged_url: str
    vm_id: str
    began_ns: int

    async def says(self) -> Used:
        await asyncio.sleep(SAMPLED_SECONDS)
        token = await self.operator.connection.token()
        client = MeterServiceClient(
            self.billaged_url, http_client=Client(HTTPTransport(proxy=DIRECT))
        )
        request = meter_pb.FlushWindowsRequest(vm_ids=[self.vm_id])
        await client.flush_windows(request, headers={"authorization": f"Bearer {token}"})
        answer = await self.api.usage.get(
            from_ns=self.began_ns, to_ns=CLOCK.now_ns() + NS_PER_SECOND, vm_ids=[self.vm_id]
        )
        quantities = {row.meter: int(row.quantity) for row in answer.rows}
        return Used(**{name: quantities.get(meter, 0) for name, meter in METERS.items()})


async def get(address: str, name: str) -> int:
    """Run a script in the guest; answers how many bytes it said."""
    client = Client(HTTPTransport(proxy=DIRECT, timeout=120.0))
    answer = await client.execute("GET", f"http://{address}:{SAMPLE_PORT}/cgi-bin/{name}.cgi")
    assert answer.status == 200
    return len(answer.content)


def grown(before: Used, after: Used, name: str) -> int:
    return int(getattr(after, name)) - int(getattr(before, name))


async def test_a_vm_is_metered_as_the_host_accounts_for_it() -> None:
    async with temporary_platform("test") as platform:
        data_dir = Path(platform.data_dir)
        async with AsyncIronworks(data_dir=data_dir) as operator:
            tenant = await operator.tenants.create("metered")
            roles = [roles_pb.Role.OWNER]
            key = await operator.keys.create("k", roles=roles, tenant_id=tenant.tenant_id)
            image = write_image(data_dir / "images" / "loaded", loaded_image())
            began_ns = CLOCK.now_ns()
            async with AsyncIronworks(platform.api_url, key.secret, platform.ca_file) as api:
                done = await deploy(api, DeploySpec(image=image, memory_bytes=256 * MIB))
                vm = await operator.vms.get(done.vm_ids[0])
                assert vm.network is not None
                address, pid = vm.network.fabric_address, vmm_pid(vm.id)
                metered = Metered(operator, api, platform.services["billaged"], vm.id, began_ns)
                loads = {"cpu": "cpu_ns", "read": "disk_read_bytes", "send": "sent_bytes"}
                for script, name in loads.items():
                    host_before, before = host_says(pid), await metered.says()
                    length = await get(address, script)
                    host_after, after = host_says(pid), await metered.says()
                    host, ours = grown(host_before, host_after, name), grown(before, after, name)
                    assert ours == pytest.approx(host, rel=0.02), script
                    if script == "send":
                        assert length == SENT_BYTES
                        assert ours > SENT_BYTES
                        received = grown(before, after, "received_bytes")
                        theirs = grown(host_before, host_after, "received_bytes")
                        assert received == pytest.approx(theirs, rel=0.02)
                    if script == "read":
                        assert ours > READ_BYTES
                await api.jobs.wait(await api.deployments.delete(done.deployment_id))
