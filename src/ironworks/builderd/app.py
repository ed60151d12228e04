"""What can be asked of builderd: create, read, watch, cancel and delete builds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import structlog
from sqlalchemy import Connection

from ironworks.builderd import policy as policies
from ironworks.builderd import store
from ironworks.builderd.changes import Changes
from ironworks.builderd.decide import (
    check_cancellable,
    check_queue,
    check_request,
    move,
    parse_image,
    take_up,
)
from ironworks.builderd.making import Maker
from ironworks.builderd.sources.local import locate, resolve_layout
from ironworks.builderd.types import (
    Build,
    BuilderSettings,
    BuildFilter,
    BuildState,
    LogLine,
    Package,
    Progress,
    RootfsFormat,
    Stats,
    Transport,
)
from ironworks.builderd.uploads import Uploads
from ironworks.builderd.worker import Worker
from ironworks.model.errors import (
    Aborted,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
)
from ironworks.model.ids import new_id
from ironworks.model.pages import PageSpec
from ironworks.model.units import NS_PER_DAY, NS_PER_SECOND
from ironworks.runtime.architecture import host_architecture
from ironworks.runtime.clock import Clock, Entropy
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
_QUEUED_LIMIT = 10_000
_LOG_BATCH = 500
_WATCH_SECONDS = 2.0
_MIN_WINDOW_SECONDS = 60
_MAX_WINDOW_SECONDS = 30 * 86400


class Builds:
    """Use cases over builds. `enqueue` puts a build in the durable queue."""

    def __init__(  # noqa: PLR0913 - the parts it puts together
        self,
        *,
        database: Database,
        worker: Worker,
        maker: Maker,
        uploads: Uploads,
        changes: Changes,
        settings: BuilderSettings,
        clock: Clock,
        entropy: Entropy,
        enqueue: Callable[[Build], Awaitable[None]],
    ) -> None:
        self._database = database
        self._worker = worker
        self._maker = maker
        self._uploads = uploads
        self._changes = changes
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._enqueue = enqueue

    async def create(
        self,
        tenant_id: str,
        image: str,
        *,
        rootfs_format: RootfsFormat,
        labels: Mapping[str, str],
        priority: int,
        timeout_seconds: int,
        force: bool,
        key: str,
    ) -> Build:
        """Accept a build; it is durable when this returns.

        Raises:
            InvalidRequest: the reference cannot be one, or something is out of bounds.
            NotFound: it names an upload that is not there.
            ResourceExhausted: the tenant has too many builds waiting.
        """
        reference = parse_image(image)
        seconds = check_request(labels, timeout_seconds, self._settings.build_timeout_seconds)
        if reference.transport is Transport.UPLOAD:
            await self._uploads.touch(tenant_id, reference.location)
        now_ns = self._clock.now_ns()
        fresh = Build(
            build_id=new_id("bld", self._clock, self._entropy),
            tenant_id=tenant_id,
            image=image,
            format=rootfs_format,
            state=BuildState.QUEUED,
            created_at_ns=now_ns,
            updated_at_ns=now_ns,
            timeout_seconds=seconds,
            priority=priority,
            force=force,
            labels=dict(sorted(labels.items())),
        )

        build = await self._database.write(lambda it: self._accept(it, fresh, key))
        if build.build_id != fresh.build_id:
            return build
        at_once = None if force else await self._reuse_at_once(build)
        if at_once is not None:
            return at_once
        await self._enqueue(build)
        return build

    def _accept(self, connection: Connection, fresh: Build, key: str) -> Build:
        """`fresh`, recorded; or the build that an earlier request with this key made."""
        request = (
            fresh.image,
            fresh.format,
            fresh.labels,
            fresh.priority,
            fresh.timeout_seconds,
            fresh.force,
        )
        claimed = store.claim(
            connection,
            scope=f"{fresh.tenant_id}:create",
            key=key,
            request=repr(request).encode(),
            resource_id=fresh.build_id,
            now_ns=fresh.created_at_ns,
        )
        known = store.read_build(connection, claimed)
        if known is not None:
            return known
        check_queue(
            store.count_waiting(connection, fresh.tenant_id),
            self._settings.max_queued_builds_per_tenant,
        )
        store.insert_build(connection, fresh)
        store.append_log(connection, fresh.build_id, fresh.state, "Accepted.", fresh.created_at_ns)
        return fresh

    async def _reuse_at_once(self, build: Build) -> Build | None:
        """Complete a build of an unchanged layout on this machine without the queue.

        Its digest is two small files away. Whatever stands in the way is left to the worker, which
        finds it again and says so.
        """
        reference = self._maker.reference(build.image)
        if reference.transport not in (Transport.LAYOUT, Transport.PATH):
            return None
        try:
            policy = await self._maker.policy(build.tenant_id)
            refused = policies.refusal(policies.judge_reference(policy, reference))
            if refused is None and await asyncio.to_thread(Path(reference.location).is_dir):
                path = await asyncio.to_thread(locate, reference, self._settings.image_roots())
                resolved, _ = await asyncio.to_thread(resolve_layout, path, reference.name)
                meant = replace(
                    build,
                    image_digest=resolved.digest,
                    index_digest=resolved.index_digest,
                    platform=f"linux/{host_architecture()}",
                    policy_digest=policies.digest(policy),
                )
                made = await self._maker.find_made(meant)
                if made is not None:
                    return await self._complete(build, meant, made)
        except (IronError, OSError) as error:
            _log.info("no_fast_path", build=build.build_id, error=str(error))
        return None

    async def _complete(self, build: Build, meant: Build, made: Build) -> Build:
        now_ns = self._clock.now_ns()
        done = replace(
            move(take_up(meant, self._worker.name, now_ns), BuildState.COMPLETED, now_ns),
            result=made.result,
            reused_build_id=made.build_id,
            policy_report=made.policy_report,
        )

        def work(connection: Connection) -> Build:
            after = store.change_build(connection, build, done, now_ns)
            text = f"Built before, by {made.build_id}."
            store.append_log(connection, build.build_id, after.state, text, now_ns)
            return after

        return await self._database.write(work)

    async def get(self, tenant_id: str, build_id: str) -> Build:
        """One build; `tenant_id` empty: an operator, who sees all.

        Raises:
            NotFound: there is none that the caller may know of.
        """
        build = await self._database.read(lambda connection: store.read_build(connection, build_id))
        return _owned(build, tenant_id, build_id)

    async def progress(self, build: Build) -> Progress:
        """How far a build is in its present state, whichever worker has it."""
        if build.ended:
            return Progress()
        here = self._changes.progress(build.build_id)
        if here != Progress():
            return here
        return await self._database.read(
            lambda connection: store.read_progress(connection, build.build_id)
        )

    async def packages(self, build: Build) -> tuple[Package, ...]:
        """The packages that the image declares."""
        made_by = build.reused_build_id or build.build_id
        return await self._database.read(
            lambda connection: store.read_packages(connection, made_by)
        )

    async def page(self, tenant_id: str, query: BuildFilter, page: PageSpec) -> list[Build]:
        """A page of builds, and one more if there is one more."""
        return await self._database.read(
            lambda connection: store.list_builds(connection, tenant_id, query, page)
        )

    async def watch(self, tenant_id: str, build_id: str) -> AsyncIterator[Build]:
        """The build as it is, then after every change, until it has ended.

        Raises:
            NotFound: there is none that the caller may know of.
        """
        told: tuple[int, Progress] | None = None
        while True:
            event = self._changes.subscribe(build_id)
            build = await self.get(tenant_id, build_id)
            now = build.revision, await self.progress(build)
            if now != told:
                yield build
                told = now
            if build.ended:
                self._changes.forget(build_id)
                return
            await _wait(event)

    async def logs(
        self, tenant_id: str, build_id: str, *, after: int, from_end: bool, follow: bool
    ) -> AsyncIterator[LogLine]:
        """Lines of a build's log.

        Raises:
            NotFound: there is none that the caller may know of.
        """
        await self.get(tenant_id, build_id)
        if from_end and not after:
            after = await self._database.read(
                lambda connection: store.last_sequence(connection, build_id)
            )
        while True:
            event = self._changes.subscribe(build_id)
            build = await self.get(tenant_id, build_id)
            lines = await self._database.read(
                lambda connection, after=after: store.read_log(
                    connection, build_id, after, _LOG_BATCH
                )
            )
            for line in lines:
                yield line
                after = line.sequence
            if len(lines) == _LOG_BATCH:
                continue
            if build.ended or not follow:
                return
            await _wait(event)

    async def cancel(self, tenant_id: str, build_id: str, key: str) -> Build:
        """End a build that has not ended.

        Raises:
            NotFound: there is none that the caller may know of.
            FailedPrecondition: it has completed or failed.
        """
        for _ in range(10):
            try:
                build = await self._cancel(tenant_id, build_id, key)
            except Aborted:  # the worker moved it meanwhile
                continue
            self._worker.stop(build_id)
            self._changes.forget(build_id)
            return build
        raise Aborted(f"Build {build_id} changes too fast; cancel it again.")

    async def _cancel(self, tenant_id: str, build_id: str, key: str) -> Build:
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> Build:
            build = _owned(store.read_build(connection, build_id), tenant_id, build_id)
            store.claim(
                connection,
                scope=f"{build.tenant_id}:cancel",
                key=key,
                request=build_id.encode(),
                resource_id=build_id,
                now_ns=now_ns,
            )
            if build.state is BuildState.CANCELLED:
                return build
            check_cancellable(build)
            after = move(build, BuildState.CANCELLED, now_ns)
            after = store.change_build(connection, build, after, now_ns)
            store.append_log(connection, build_id, after.state, "Cancelled on request.", now_ns)
            return after

        return await self._database.write(work)

    async def delete(self, tenant_id: str, build_id: str) -> None:
        """Delete the record and log of a build that has ended. Deleting again changes nothing.

        Raises:
            NotFound: the build is another tenant's.
            FailedPrecondition: it has not ended.
        """

        def work(connection: Connection) -> None:
            build = _owned(store.read_build(connection, build_id), tenant_id, build_id)
            if not build.ended:
                raise FailedPrecondition(
                    f"Build {build_id} has not ended.", hint="Cancel it first."
                )
            store.delete_build(connection, build_id)

        await self._database.write(work)

    async def stats(self, tenant_id: str, window_seconds: int) -> Stats:
        """Figures about builds.

        Raises:
            InvalidRequest: the window is out of bounds.
        """
        seconds = window_seconds or NS_PER_DAY // NS_PER_SECOND
        if not _MIN_WINDOW_SECONDS <= seconds <= _MAX_WINDOW_SECONDS:
            raise InvalidRequest(
                f"window_seconds must be {_MIN_WINDOW_SECONDS} to {_MAX_WINDOW_SECONDS}."
            )
        now_ns = self._clock.now_ns()
        since_ns = now_ns - seconds * NS_PER_SECOND
        return await self._database.read(
            lambda connection: store.stats(connection, tenant_id, since_ns, now_ns)
        )

    async def usage(self, tenant_id: str) -> tuple[int, int]:
        """Builds of a tenant that run, and that wait."""
        return await self._database.read(
            lambda connection: (
                store.count_running(connection, tenant_id),
                store.count_waiting(connection, tenant_id),
            )
        )

    async def unended(self) -> list[Build]:
        """Builds that have not ended, oldest first."""
        return await self._database.read(
            lambda connection: store.unended(connection, _QUEUED_LIMIT)
        )

    async def forget_keys(self) -> int:
        """Drop old idempotency keys; answers how many."""
        now_ns = self._clock.now_ns()
        return await self._database.write(lambda connection: store.forget_keys(connection, now_ns))


def _owned(build: Build | None, tenant_id: str, build_id: str) -> Build:
    if build is None or tenant_id not in ("", build.tenant_id):
        raise NotFound(
            f"Build {build_id[:64]!r} is not known here.", hint="List the builds to see which are."
        )
    return build


async def _wait(event: asyncio.Event) -> None:
    """Until the event, or a while: what another process changes makes no event here."""
    try:
        async with asyncio.timeout(_WATCH_SECONDS):
            await event.wait()
    except TimeoutError:
        return
