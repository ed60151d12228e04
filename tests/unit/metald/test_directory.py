from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest

from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb as pb
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryServiceClient
from ironworks.metald.app import create, host
from ironworks.metald.app.context import Once
from ironworks.metald.directory import HEARTBEAT_SECONDS, HostReporter
from ironworks.metald.types import HostState
from ironworks.model.errors import NotFound, Unavailable
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metald import LIMITS, TENANT, World, vm_spec, world


class Directory:
    """gatewayd's, as far as metald sees it."""

    def __init__(self) -> None:
        self.hosts: dict[str, pb.Host] = {}
        self.beats: list[pb.HeartbeatRequest] = []
        self.down = False
        self.state = pb.HostState.READY

    async def register_host(self, request: pb.RegisterHostRequest) -> pb.RegisterHostResponse:
        if self.down:
            raise Unavailable("gatewayd does not answer.")
        assert request.host is not None
        self.hosts[request.host.host_id] = request.host
        return pb.RegisterHostResponse(host=request.host)

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        if request.host_id not in self.hosts:
            raise NotFound("No such host.")
        self.beats.append(request)
        return pb.HeartbeatResponse(state=self.state)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def w(tmp_path: Path, clock: FakeClock) -> AsyncGenerator[World]:
    async with world(tmp_path, clock=clock) as made:
        yield made


def reporter(w: World, directory: Directory) -> HostReporter:
    client = cast("HostDirectoryServiceClient", cast("Any", directory))
    return HostReporter(w.context, lambda: client)


async def test_a_host_registers_with_what_it_has_then_reports_what_is_taken(
    w: World, clock: FakeClock
) -> None:
    directory = Directory()
    one = reporter(w, directory)
    await one.activate()
    (found,) = directory.hosts.values()
    assert found.metald_url == w.context.settings.metald_url
    assert (found.driver, found.acceleration, found.architecture) == ("fake", "none", "amd64")
    assert found.capacity is not None
    assert found.capacity.vcpus == LIMITS.capacity.vcpus
    assert found.capacity.disk_bytes == LIMITS.capacity.disk_bytes
    await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(), idempotency_key=""
    )
    await one.activate()
    assert directory.beats == []
    await clock.advance(HEARTBEAT_SECONDS)
    await one.activate()
    (beat,) = directory.beats
    assert beat.allocated is not None
    assert (beat.allocated.vcpus, beat.allocated.vms, beat.vms_known) == (1, 1, 1)


async def test_a_directory_that_has_forgotten_is_told_again(w: World, clock: FakeClock) -> None:
    directory = Directory()
    one = reporter(w, directory)
    await one.activate()
    directory.hosts.clear()
    await clock.advance(HEARTBEAT_SECONDS)
    with pytest.raises(NotFound):
        await one.activate()
    await one.activate()
    assert w.context.host.host_id in directory.hosts


async def test_a_directory_that_is_down_is_tried_again(w: World) -> None:
    directory = Directory()
    directory.down = True
    one = reporter(w, directory)
    with pytest.raises(Unavailable):
        await one.activate()
    directory.down = False
    await one.activate()
    assert w.context.host.host_id in directory.hosts


async def test_a_host_that_takes_no_vms_says_so(w: World, clock: FakeClock) -> None:
    directory = Directory()
    one = reporter(w, directory)
    await one.activate()
    await host.cordon(w.context, "", once=Once(scope="", key="", request=b""))
    await clock.advance(HEARTBEAT_SECONDS)
    await one.activate()
    beat = directory.beats[-1]
    assert beat.allocated is not None
    assert (beat.state, beat.allocated.vcpus) == (pb.HostState.CORDONED, 0)
    assert [found.state for found in directory.hosts.values()] == [pb.HostState.READY]


async def test_the_directory_may_order_a_drain(w: World, clock: FakeClock) -> None:
    directory = Directory()
    one = reporter(w, directory)
    await one.activate()
    directory.state = pb.HostState.DRAINING
    await clock.advance(HEARTBEAT_SECONDS)
    await one.activate()
    assert w.context.host.state is HostState.DRAINED
    assert "directory" in w.context.host.reason
