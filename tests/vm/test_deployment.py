"""A deployment of a real VM: no traffic before it is ready, back by itself after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pyqwest import Client, HTTPTransport

from ironworks.cli.deploy import DeploySpec, follow, submit
from ironworks.gen.ironworks.gatewayd.v1 import deployments_pb, roles_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.machine.temporary import temporary_platform
from ironworks.model.units import MIB
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.rpc.direct import DIRECT
from ironworks.runtime.rpc.readiness import NOT_THERE
from ironworks.runtime.tasks import Tasks
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

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.timeout(400)]
STATE, CLOCK = vm_pb.VmState, SystemClock()
OK, NOT_FOUND = 200, 404
PATIENCE_SECONDS = 120
START = f"""#!/bin/sh
cd /srv
rm -f health
echo boot >>boots
echo $$ >pid
exec httpd -f -p {SAMPLE_PORT} -h /srv
"""
SCRIPTS = {"heal": "echo fine >/srv/health", "crash": "kill -9 $(cat /srv/pid)"}


def moody_image() -> Image:
    """Listens at once, is healthy when it is told so, ends when it is told so, counts its boots."""
    sample = sample_image(static_busybox(), "amd64")
    layer = [
        *cgi_scripts(SCRIPTS, "text/plain"),
        File(name="start", data=START.encode(), mode=0o755),
        symlink("bin/rm", "busybox"),
        symlink("bin/kill", "busybox"),
    ]
    return replace(
        sample,
        layers=[*sample.layers, Layer(tar=make_tar(layer))],
        config={**sample.config, "Entrypoint": ["/start"], "User": "root"},
    )


async def ask(vm: vm_pb.Vm, path: str) -> tuple[int, bytes]:
    """What the VM itself answers, past the endpoint; status 0: nothing."""
    assert vm.network is not None
    client = Client(HTTPTransport(proxy=DIRECT, timeout=10.0))
    try:
        answer = await client.get(f"http://{vm.network.fabric_address}:{SAMPLE_PORT}/{path}")
    except NOT_THERE:
        return 0, b""
    return answer.status, bytes(answer.content)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await holds():
            await CLOCK.sleep(0.1)


async def heal(api: AsyncIronworks, vm_id: str) -> None:
    """Let the VM be healthy, once it answers and has been seen not to be."""
    vm = await api.vms.get(vm_id)

    async def answers() -> bool:
        return (await ask(vm, "health"))[0] == NOT_FOUND

    await until(answers)
    assert (await ask(vm, "cgi-bin/heal.cgi"))[0] == OK


async def test_traffic_waits_for_health_and_a_crash_is_mended() -> None:
    async with temporary_platform("test") as platform:
        data_dir = Path(platform.data_dir)
        async with AsyncIronworks(data_dir=data_dir) as operator:
            tenant = await operator.tenants.create("moody")
            roles = [roles_pb.Role.OWNER]
            key = await operator.keys.create("k", roles=roles, tenant_id=tenant.tenant_id)
        image = write_image(data_dir / "images" / "moody", moody_image())
        async with AsyncIronworks(platform.api_url, key.secret, platform.ca_file) as api:
            await live(api, image)


async def live(api: AsyncIronworks, image: str) -> None:
    order = DeploySpec(
        image=image,
        memory_bytes=192 * MIB,
        disk_bytes=32 * MIB,
        restart="on-failure",
        health_path="/health",
    )
    accepted = await submit(api, order)
    made = accepted.deployment or deployments_pb.Deployment()
    async with Tasks() as tasks:
        deployed = tasks.start(follow(api, accepted), name="deploy")

        async def booting() -> bool:
            found = (await api.vms.list(states=[STATE.BOOTING])).items
            return bool(found) and (await ask(found[0], "boots"))[0] == OK

        await until(booting)
        [vm] = (await api.vms.list()).items
        # It answers, but not as it should: not running, and nobody is sent there.
        assert (vm.state, vm.ready) == (STATE.BOOTING, False)
        assert (await api.endpoint_get(made.endpoint)).status != OK
        assert not deployed.done()
        await heal(api, vm.id)
        assert (await deployed).vm_ids == (vm.id,)

    async def serves() -> bool:
        return (await api.endpoint_get(made.endpoint, "/boots")).status == OK

    await until(serves)
    await ask(vm, "cgi-bin/crash.cgi")

    async def restarted() -> bool:
        now = await api.vms.get(vm.id)
        return now.restarts == 1

    await until(restarted)
    now = await api.vms.get(vm.id)
    assert (now.state, now.ready) == (STATE.RUNNING, False)
    await heal(api, vm.id)
    await until(serves)
    now = await api.vms.get(vm.id)
    assert (now.state, now.ready, now.boot_epoch) == (STATE.RUNNING, True, 2)
    # What it wrote before the crash is on its disk.
    assert (await ask(now, "boots"))[1].split() == [b"boot", b"boot"]
    assert any("signal 9" in line.reason and "booted again" in line.reason for line in now.history)
    await api.jobs.wait(await api.deployments.delete(made.deployment_id))
    assert not (await api.vms.list()).items
