"""The workflow that brings a deployment up; see `runtime.workflows` for what a step may rely on.

    begin → build.start → build.wait → place → create → boot → route → (completed)
      └────────┴───────────┴─────────────┴───────┴────────┴───────┴──→ undo → (failed, cancelled)

Each step reads the store, does its effect under ids and keys that follow from the deployment, and
writes what came of it, so it can be run again after a crash at any line. Between two looks at
something that takes long, a job that was cancelled stops.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import structlog
from sqlalchemy import Connection

from ironworks.gatewayd import decide, placement
from ironworks.gatewayd.app.edge import EdgeApp
from ironworks.gatewayd.app.jobs import JobApp
from ironworks.gatewayd.app.patience import accepts_connections, at_most, errors_of, patiently
from ironworks.gatewayd.app.removal import Removal
from ironworks.gatewayd.remote.builder import Builder, BuildPhase, BuildView
from ironworks.gatewayd.remote.vms import VmPhase, Vms
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.gatewayd.store import deployments as store
from ironworks.gatewayd.store import hosts as host_store
from ironworks.gatewayd.types import (
    JOB_ENDED,
    Deployment,
    DeploymentState,
    JobResult,
    Replica,
    ReplicaState,
    StageKind,
    StageState,
    shape_of,
)
from ironworks.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    IronError,
    kind_of,
)
from ironworks.model.units import NS_PER_MS, NS_PER_SECOND
from ironworks.runtime.clock import Clock
from ironworks.runtime.workflows import Json, Run
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
LOOK_SECONDS = 0.1
BOOT_LOOK_SECONDS = 0.05
CONNECT_SECONDS = 0.5
AT_ONCE = 4
HOST_PATIENCE_SECONDS = 15.0
UNDO_PATIENCE_SECONDS = 30.0


def _progress(view: BuildView) -> str:
    if view.total_bytes:
        return f"{view.step} ({100 * view.done_bytes // view.total_bytes}%)"
    return view.step


class Deploy:
    """The steps, and their order."""

    def __init__(
        self,
        *,
        database: Database,
        jobs: JobApp,
        edge: EdgeApp,
        builder: Builder,
        vms: Vms,
        removal: Removal,
        clock: Clock,
        settings: GatewaydSettings,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._edge = edge
        self._builder = builder
        self._vms = vms
        self._removal = removal
        self._clock = clock
        self._settings = settings

    async def run(self, run: Run, argument: Json) -> Json:
        """The workflow: `{"job_id": …}` → None. Its outcome is the job's."""
        job_id = str(cast("dict[str, object]", argument)["job_id"])
        try:
            await run.step("begin", functools.partial(self._begin, job_id))
            await run.step("build.start", functools.partial(self._start_build, job_id))
            await run.step("build.wait", functools.partial(self._wait_build, job_id))
            await run.step("place", functools.partial(self._place, job_id))
            await run.step("create", functools.partial(self._create, job_id))
            await run.step("boot", functools.partial(self._boot, job_id))
            await run.step("route", functools.partial(self._route, job_id))
        except IronError as error:
            await run.step("undo", functools.partial(self.undo, job_id, error))
        return None

    async def _load(self, job_id: str) -> Deployment:
        job = await self._jobs.load(job_id)
        return await self._database.read(lambda c: store.get_deployment(c, job.resource_id))

    async def _replicas(self, deployment: Deployment) -> list[Replica]:
        return await self._database.read(lambda c: store.replicas_of(c, deployment.deployment_id))

    async def _begin(self, job_id: str) -> None:
        await self._jobs.begin(job_id)
        await self._jobs.check_wanted(job_id)

    # --- build ----------------------------------------------------------------------------------

    async def _start_build(self, job_id: str) -> None:
        deployment = await self._load(job_id)
        await self._jobs.stage(
            job_id, StageKind.RESOLVING, StageState.RUNNING, detail=deployment.spec.image
        )
        build_id = await patiently(
            self._clock,
            lambda: self._builder.start(deployment.tenant_id, deployment.spec.image, job_id),
        )
        await self._change(deployment, lambda old: replace(old, build_id=build_id))

    async def _change(self, deployment: Deployment, change: store.Change) -> Deployment:
        now_ns = self._clock.now_ns()
        return await self._database.write(
            lambda c: store.change_deployment(c, deployment.deployment_id, now_ns, change)
        )

    async def _wait_build(self, job_id: str) -> None:
        deployment = await self._load(job_id)
        tenant_id, build_id = deployment.tenant_id, deployment.build_id
        until_ns = self._clock.monotonic_ns() + int(
            self._settings.deployment_build_timeout_seconds * NS_PER_SECOND
        )
        try:
            while True:
                await self._jobs.check_wanted(job_id)
                view = await patiently(self._clock, lambda: self._builder.view(tenant_id, build_id))
                await self._show_build(job_id, view)
                if view.phase is BuildPhase.COMPLETED:
                    break
                if view.phase is BuildPhase.ENDED_BADLY:
                    raise _error_of(view)
                if self._clock.monotonic_ns() > until_ns:
                    raise DeadlineExceeded("The build took too long.")
                await self._clock.sleep(LOOK_SECONDS)
        except IronError:
            await self._cancel_build(tenant_id, build_id)
            raise
        await self._change(deployment, functools.partial(_with_build, view=view))

    async def _cancel_build(self, tenant_id: str, build_id: str) -> None:
        try:
            await self._builder.cancel(tenant_id, build_id)
        except IronError as error:
            # It has ended, or builderd is away: its own time limit ends it then.
            _log.info("build_not_cancelled", build_id=build_id, error=str(error))

    async def _show_build(self, job_id: str, view: BuildView) -> None:
        kind, state = StageKind.RESOLVING, StageState.COMPLETED
        digest = view.image_digest
        if view.phase is BuildPhase.RESOLVING or not digest:
            # Still resolving, or it ended there: then the failure closes the stage.
            return
        await self._jobs.stage(job_id, kind, state, detail=digest)
        if view.phase is BuildPhase.BUILDING:
            await self._jobs.stage(
                job_id,
                StageKind.BUILDING,
                StageState.RUNNING,
                detail=_progress(view),
                total=view.total_bytes,
                done=view.done_bytes,
            )
        elif view.phase is BuildPhase.COMPLETED:
            state = StageState.SKIPPED if view.reused else StageState.COMPLETED
            detail = "already built" if view.reused else view.rootfs_asset_id
            await self._jobs.stage(job_id, StageKind.BUILDING, state, detail=detail)

    # --- VMs ------------------------------------------------------------------------------------

    async def _place(self, job_id: str) -> None:
        await self._jobs.check_wanted(job_id)
        deployment = await self._load(job_id)
        await self._jobs.stage(job_id, StageKind.PLACING, StageState.RUNNING)

        async def attempt() -> None:
            now_ns = self._clock.now_ns()
            await self._database.write(lambda c: _place(c, deployment, now_ns))

        # Hosts announce themselves every few seconds: right after a start none may be known yet.
        await patiently(self._clock, attempt, HOST_PATIENCE_SECONDS)
        replicas = await self._replicas(deployment)
        hosts = len({replica.host_id for replica in replicas})
        await self._jobs.stage(
            job_id,
            StageKind.PLACING,
            StageState.COMPLETED,
            detail=f"VMs: {len(replicas)}, hosts: {hosts}",
            total=len(replicas),
            done=len(replicas),
        )

    async def _create(self, job_id: str) -> None:
        await self._jobs.check_wanted(job_id)
        deployment = await self._load(job_id)
        replicas = await self._replicas(deployment)
        total = len(replicas)
        await self._jobs.stage(job_id, StageKind.CREATING, StageState.RUNNING, total=total)
        work = [functools.partial(self._create_one, deployment, each) for each in replicas]
        _raise_first(await at_most(AT_ONCE, work))
        await self._jobs.stage(job_id, StageKind.CREATING, StageState.COMPLETED, done=total)

    async def _create_one(self, deployment: Deployment, replica: Replica) -> None:
        url = await self._removal.url_of(replica.host_id)
        view = await patiently(self._clock, lambda: self._vms.create(url, deployment, replica))
        if view.phase is VmPhase.ENDED or not view.address:
            raise FailedPrecondition(f"The VM could not be created: {view.reason}")
        await self._removal.change(
            replica.vm_id,
            lambda old: replace(old, state=ReplicaState.CREATED, address=view.address),
        )

    async def _boot(self, job_id: str) -> None:
        deployment = await self._load(job_id)
        replicas = await self._replicas(deployment)
        total = len(replicas)
        await self._jobs.stage(job_id, StageKind.BOOTING, StageState.RUNNING, total=total)
        work = [functools.partial(self._boot_one, job_id, deployment, each) for each in replicas]
        _raise_first(await at_most(AT_ONCE, work))
        await self._jobs.stage(job_id, StageKind.BOOTING, StageState.COMPLETED, done=total)

    async def _boot_one(self, job_id: str, deployment: Deployment, replica: Replica) -> None:
        url = await self._removal.url_of(replica.host_id)
        now_ns = self._clock.now_ns()
        replica = await self._removal.change(
            replica.vm_id,
            lambda old: replace(
                old,
                state=ReplicaState.BOOTING,
                # A step that runs again must not make the boot look shorter than it was.
                boot_ordered_at_ns=old.boot_ordered_at_ns or now_ns,
            ),
        )
        timeout_seconds = deployment.spec.boot_timeout_ms / 1000
        until_ns = self._clock.monotonic_ns() + deployment.spec.boot_timeout_ms * NS_PER_MS
        view = await patiently(
            self._clock, lambda: self._vms.view(url, replica.tenant_id, replica.vm_id)
        )
        if view.phase is VmPhase.CREATED:
            await patiently(
                self._clock,
                lambda: self._vms.boot(url, replica.tenant_id, replica.vm_id, timeout_seconds),
            )
        await self._wait_ready(job_id, deployment, replica, url, until_ns)
        ready_at_ns = self._clock.now_ns()
        await self._removal.change(
            replica.vm_id,
            lambda old: replace(
                old, state=ReplicaState.READY, boot_ms=decide.boot_ms(old, ready_at_ns)
            ),
        )

    async def _wait_ready(
        self, job_id: str, deployment: Deployment, replica: Replica, url: str, until_ns: int
    ) -> None:
        """Until metald says that it is ready, and its port accepts a connection from here."""
        while True:
            await self._jobs.check_wanted(job_id)
            view = await patiently(
                self._clock, lambda: self._vms.view(url, replica.tenant_id, replica.vm_id)
            )
            if view.phase in {VmPhase.ENDED, VmPhase.GONE}:
                raise FailedPrecondition(
                    f"The VM ended before it was ready: {view.reason}",
                    hint=f"`iron vm get {replica.vm_id}` shows the last lines of its console.",
                )
            if (
                view.phase is VmPhase.RUNNING
                and view.ready
                and await accepts_connections(replica.address, deployment.port, CONNECT_SECONDS)
            ):
                return
            if self._clock.monotonic_ns() > until_ns:
                raise decide.not_ready(
                    booted=view.phase is VmPhase.RUNNING,
                    port=deployment.port,
                    timeout_ms=deployment.spec.boot_timeout_ms,
                )
            await self._clock.sleep(BOOT_LOOK_SECONDS)

    # --- end ------------------------------------------------------------------------------------

    async def _route(self, job_id: str) -> None:
        await self._jobs.check_wanted(job_id)
        deployment = await self._load(job_id)
        url = self._edge.url_of(deployment.host_label)
        await self._jobs.stage(job_id, StageKind.ROUTING, StageState.RUNNING, detail=url)
        deployment = await self._change(
            deployment, lambda old: replace(old, state=DeploymentState.RUNNING, reason="")
        )
        await self._edge.publish_and_wait()
        replicas = await self._replicas(deployment)
        await self._jobs.stage(job_id, StageKind.ROUTING, StageState.COMPLETED)
        result = JobResult(
            endpoint=url,
            image_digest=deployment.image_digest,
            build_id=deployment.build_id,
            rootfs_asset_id=deployment.rootfs_asset_id,
            build_ms=deployment.build_ms,
            build_reused=deployment.build_reused,
            boot_ms=max((replica.boot_ms for replica in replicas), default=0),
            vm_ids=tuple(replica.vm_id for replica in replicas),
        )
        await self._jobs.complete(job_id, result)

    async def undo(self, job_id: str, error: IronError) -> None:
        """Route, VMs and places go; the deployment stays as a record of why."""
        job = await self._jobs.load(job_id)
        if job.state in JOB_ENDED:
            return
        failed = decide.failed_stage(job)
        await self._jobs.change(job_id, decide.fail_stage)
        await self._jobs.stage(job_id, StageKind.UNDOING, StageState.RUNNING)
        deployment = await self._load(job_id)
        replicas = await self._removal.mark(deployment.deployment_id)
        await self._change(
            deployment, lambda old: replace(old, state=DeploymentState.FAILED, reason=str(error))
        )
        await self._edge.withdraw()
        left = await self._removal.delete_all(replicas, UNDO_PATIENCE_SECONDS)
        await self._jobs.stage(
            job_id,
            StageKind.UNDOING,
            StageState.FAILED if left else StageState.COMPLETED,
            detail="The rest is removed as soon as its host answers." if left else None,
        )
        await self._jobs.fail(job_id, error, failed)


def _place(connection: Connection, deployment: Deployment, now_ns: int) -> None:
    """Decide and reserve in one transaction: nobody else can be given the same room."""
    if store.replicas_of(connection, deployment.deployment_id):
        return  # placed in an earlier life
    places = placement.place(
        deployment.spec,
        range(deployment.spec.replicas),
        host_store.all_hosts(connection),
        store.placed_by_host(connection),
        {},
        now_ns,
    )
    for place in places:
        store.add_replica(
            connection,
            Replica(
                vm_id=decide.vm_id_of(deployment.deployment_id, deployment.generation, place.index),
                deployment_id=deployment.deployment_id,
                tenant_id=deployment.tenant_id,
                index=place.index,
                generation=deployment.generation,
                host_id=place.host_id,
                zone=place.zone,
                state=ReplicaState.PLACED,
                reason="",
                address="",
                resources=shape_of(deployment.spec),
                boot_ordered_at_ns=0,
                boot_ms=0,
            ),
        )


def _raise_first(results: Sequence[object]) -> None:
    for error in errors_of(results):
        raise error


def _with_build(deployment: Deployment, *, view: BuildView) -> Deployment:
    return replace(
        deployment,
        image_digest=view.image_digest,
        rootfs_asset_id=view.rootfs_asset_id,
        build_ms=view.build_ms,
        build_reused=view.reused,
        argv=decide.argv_of(deployment.spec, view.entrypoint, view.cmd),
        port=decide.port_of(deployment.spec, view.exposed_ports),
    )


def _error_of(view: BuildView) -> IronError:
    return kind_of(view.code)(view.message)
