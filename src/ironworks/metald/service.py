"""Composition root of metald."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterServiceClient
from ironworks.gen.ironworks.gatewayd.v1.hosts_connect import HostDirectoryServiceClient
from ironworks.gen.ironworks.metald.v1.host_connect import HostServiceASGIApplication
from ironworks.gen.ironworks.metald.v1.vm_connect import VmServiceASGIApplication
from ironworks.metald import store
from ironworks.metald.api.host import HostHandlers
from ironworks.metald.api.vms import VmHandlers
from ironworks.metald.app.context import Context
from ironworks.metald.app.recover import recover_all
from ironworks.metald.app.timing import TimedSteps
from ironworks.metald.assets.lessor import AssetClient
from ironworks.metald.cgroup.groups import HostGroups
from ironworks.metald.directory import PERIOD_SECONDS as DIRECTORY_PERIOD_SECONDS
from ironworks.metald.directory import HostReporter
from ironworks.metald.drivers.processes import boot_id
from ironworks.metald.drivers.registry import choose, make_drivers, probe_all
from ironworks.metald.guest_assets import PERIOD_SECONDS as GUEST_PERIOD_SECONDS
from ironworks.metald.guest_assets import GuestAssets
from ironworks.metald.jail_directories import JailDirectories
from ironworks.metald.network.slots import HostNetwork
from ironworks.metald.network_reconcilers import network_reconcilers
from ironworks.metald.reconcilers import lifecycle_reconcilers
from ironworks.metald.sampling.sampler import HostSampler
from ironworks.metald.sampling.stream import MetricsStream, Origin
from ironworks.metald.settings import MetaldSettings, host_size
from ironworks.metald.steps import NoSteps
from ironworks.metald.types import Host, HostState
from ironworks.model.errors import FailedPrecondition
from ironworks.model.ids import new_id
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.reconcile import Reconciler
from ironworks.runtime.service import Chassis, Parts
from ironworks.runtime.settings import tag_of
from ironworks.storage.schema import ensure_current
from ironworks.storage.sql import Database, sqlite_url

NAME = "metald"
_RUN_ID_BYTES = 8


@asynccontextmanager
async def compose(chassis: Chassis[MetaldSettings]) -> AsyncGenerator[Parts]:
    """Open the store, find every VM again, and build what serves them.

    Raises:
        FailedPrecondition: not root, or the host lacks what VMs need.
    """
    if os.geteuid() != 0:
        raise FailedPrecondition(
            "metald must run as root: it makes namespaces, cgroups and taps.", hint="Use sudo."
        )
    settings, layout = chassis.settings, read_layout()
    database = Database(sqlite_url(settings.own_dir / "metald.db"))
    try:
        await asyncio.to_thread(ensure_current, database.engine, "ironworks.metald.migrations")
        host = await database.write(lambda connection: _this_host(connection, chassis))
        stream = _stream(chassis, host)
        sampler = HostSampler(clock=chassis.clock, tasks=chassis.tasks, sink=stream)
        context = await _context(
            chassis, database, host, HostGroups(layout, host.tag, chassis.clock), sampler
        )
        await recover_all(context)
        chassis.tasks.start(stream.run(), name="metrics stream")
        chassis.tasks.start(sampler.run(), name="sampler")
        yield Parts(
            applications=[
                chassis.application(VmServiceASGIApplication, VmHandlers(context)),
                chassis.application(HostServiceASGIApplication, HostHandlers(context, layout.name)),
            ],
            reconcilers=_reconcilers(chassis, context),
            ready=lambda: _ready(context),
        )
        sampler.close()
        await context.network.drain()
        for handle in list(context.handles.values()):
            with contextlib.suppress(OSError):
                await handle.close()
    finally:
        await asyncio.to_thread(database.close)


def _this_host(connection: store.Connection, chassis: Chassis[MetaldSettings]) -> Host:
    """The host's row, made at the first start."""
    tag = tag_of(chassis.settings.data_dir)
    host = store.read_host(connection)
    if host is None:
        host = Host(
            host_id=new_id("hst", chassis.clock, chassis.entropy),
            tag=tag,
            state=HostState.ACTIVE,
            reason="",
            generation=1,
        )
    elif host.tag != tag and not store.taken_slots(connection):
        # The directory was moved. While VMs live under the old names, these stay.
        host = replace(host, tag=tag)
    store.write_host(connection, host)
    return host


def _stream(chassis: Chassis[MetaldSettings], host: Host) -> MetricsStream:
    return MetricsStream(
        origin=Origin(
            host_id=host.host_id,
            host_boot_id=boot_id(),
            run_id=chassis.entropy.token_bytes(_RUN_ID_BYTES).hex(),
        ),
        connect=lambda: chassis.clients.of(MeterServiceClient, "billaged", timeout_seconds=None),
        clock=chassis.clock,
        entropy=chassis.entropy,
    )


async def _context(
    chassis: Chassis[MetaldSettings],
    database: Database,
    host: Host,
    groups: HostGroups,
    sampler: HostSampler,
) -> Context:
    settings, clock = chassis.settings, chassis.clock
    steps = TimedSteps(NoSteps(), clock)
    # What a probe finds out holds for the host, whatever the data directory.
    drivers = make_drivers(clock, steps, guest_dir=settings.guest_dir, state_dir=settings.guest_dir)
    probes = await probe_all(drivers)
    return Context(
        db=database,
        clock=clock,
        entropy=chassis.entropy,
        tasks=chassis.tasks,
        settings=settings,
        limits=settings.limits(await asyncio.to_thread(host_size, settings.data_dir)),
        steps=steps,
        drivers=drivers,
        probes=probes,
        chosen=choose(probes, settings.driver),
        network=HostNetwork(host.tag),
        groups=groups,
        jails=JailDirectories(
            settings.jails_dir, settings.consoles_dir, settings.console_max_bytes
        ),
        lessor=AssetClient(chassis.clients, settings.data_dir),
        sampler=sampler,
        host=host,
        started_at_ns=clock.now_ns(),
    )


def _reconcilers(chassis: Chassis[MetaldSettings], context: Context) -> list[Reconciler]:
    reporter = HostReporter(
        context, lambda: chassis.clients.of(HostDirectoryServiceClient, "gatewayd")
    )
    return [
        Reconciler("host-directory", DIRECTORY_PERIOD_SECONDS, reporter.activate),
        Reconciler("guest-assets", GUEST_PERIOD_SECONDS, GuestAssets(context).activate),
        *lifecycle_reconcilers(context),
        *network_reconcilers(context),
    ]


async def _ready(context: Context) -> Mapping[str, str]:
    """What keeps this host from taking VMs: its driver, or the lack of a guest kernel."""
    probe = context.probe
    kernel = context.host.default_kernel_asset_id or not probe.capabilities.needs_kernel
    return {
        "driver": "" if probe.available else probe.sentence,
        "guest": "" if kernel else "The guest's kernel is not registered at assetmanagerd yet.",
    }
