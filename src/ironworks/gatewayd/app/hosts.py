"""The host directory."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from ironworks.gatewayd import decide
from ironworks.gatewayd.store import hosts as store
from ironworks.gatewayd.types import Host, HostState, Resources
from ironworks.model.errors import AlreadyExists, InvalidRequest, NotFound
from ironworks.model.ids import check_id, check_name
from ironworks.model.pages import PageSpec
from ironworks.runtime.clock import Clock
from ironworks.storage.sql import Database

HEARTBEAT_PERIOD_MS = 5_000


def _no_host() -> NotFound:
    return NotFound("There is no such host.", hint="List hosts, or check the id.")


class HostApp:
    """Use cases of hosts."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def _as_of_now(self, host: Host) -> Host:
        return replace(host, state=decide.host_state(host, self._clock.now_ns()))

    async def register(self, announced: Host) -> Host:
        """Take a host's word for what it is; a cordon survives its restart."""
        check_id(announced.host_id, "hst", "host.host_id")
        check_name(announced.name, "host.name")
        if not announced.metald_url.startswith(("http://", "https://")):
            raise InvalidRequest("host.metald_url must be an http or https URL.")
        now_ns = self._clock.now_ns()

        def write(connection: Connection) -> Host:
            other = store.find_host_by_name(connection, announced.name)
            if other is not None and other.host_id != announced.host_id:
                raise AlreadyExists(
                    f"Another host has the name {announced.name}.",
                    hint="Set another name in the host's settings, or remove the old host.",
                )
            before = store.find_host(connection, announced.host_id)
            host = replace(
                announced,
                labels=decide.check_labels(announced.labels),
                state=HostState.READY if before is None else before.state,
                registered_at_ns=now_ns if before is None else before.registered_at_ns,
                last_heartbeat_at_ns=now_ns,
            )
            store.put_host(connection, host)
            return host

        return await self._database.write(write)

    async def heartbeat(
        self, host_id: str, allocated: Resources, reported: HostState = HostState.READY
    ) -> Host:
        """Note that a host lives, what it has given away, and what it says of itself."""
        now_ns = self._clock.now_ns()

        def write(connection: Connection) -> Host:
            host = store.find_host(connection, host_id)
            if host is None:
                raise _no_host()
            host = replace(
                host, allocated=allocated, reported=reported, last_heartbeat_at_ns=now_ns
            )
            store.put_host(connection, host)
            return host

        return await self._database.write(write)

    async def get(self, host_id: str) -> Host:
        """One host."""
        host = await self._database.read(lambda c: store.find_host(c, host_id))
        if host is None:
            raise _no_host()
        return self._as_of_now(host)

    async def list(self, page: PageSpec, zone: str) -> list[Host]:
        """One more than a page."""
        hosts = await self._database.read(lambda c: store.list_hosts(c, page, zone))
        return [self._as_of_now(host) for host in hosts]

    async def set_cordoned(self, host_id: str, *, cordoned: bool) -> Host:
        """Keep new VMs off a host, or let it have them again."""

        def write(connection: Connection) -> Host:
            host = store.find_host(connection, host_id)
            if host is None:
                raise _no_host()
            state = HostState.CORDONED if cordoned else HostState.READY
            host = replace(host, state=state)
            store.put_host(connection, host)
            return host

        return self._as_of_now(await self._database.write(write))
