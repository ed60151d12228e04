"""Loops that converge what is with what should be. Each activation is idempotent and bounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import structlog
from sqlalchemy import Connection

from ironworks.gatewayd.app.edge import EdgeApp
from ironworks.gatewayd.app.jobs import JobApp
from ironworks.gatewayd.app.removal import Removal
from ironworks.gatewayd.remote.vms import VmPhase, Vms, VmView
from ironworks.gatewayd.store import deployments as store
from ironworks.gatewayd.store import jobs as job_store
from ironworks.gatewayd.tables import IDEMPOTENCY
from ironworks.gatewayd.types import Deployment, DeploymentState, JobKind, Replica, ReplicaState
from ironworks.model.errors import Internal, IronError, NotFound
from ironworks.model.units import NS_PER_DAY
from ironworks.runtime.clock import Clock
from ironworks.runtime.reconcile import Reconciler, Report
from ironworks.runtime.workflows import ENDED, Workflows
from ironworks.storage import idempotency
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()
JOBS_PERIOD_SECONDS = 5.0
EDGE_PERIOD_SECONDS = 10.0
REPLICAS_PERIOD_SECONDS = 2.0
LEFTOVERS_PERIOD_SECONDS = 10.0
HOUSEKEEPING_PERIOD_SECONDS = 3600.0
KEEP_JOBS_NS = 30 * NS_PER_DAY
FORGET_AT_ONCE = 500
LEFTOVER_PATIENCE_SECONDS = 1.0

GiveUp = Callable[[str, IronError], Awaitable[None]]


class Reconcilers:
    """All loops of gatewayd."""

    def __init__(
        self,
        *,
        database: Database,
        workflows: Workflows,
        jobs: JobApp,
        edge: EdgeApp,
        vms: Vms,
        removal: Removal,
        give_up: Mapping[JobKind, GiveUp],
        clock: Clock,
    ) -> None:
        self._database = database
        self._workflows = workflows
        self._jobs = jobs
        self._edge = edge
        self._vms = vms
        self._removal = removal
        self._give_up = give_up
        self._clock = clock

    def all(self) -> list[Reconciler]:
        """The loops, for the chassis to run."""
        return [
            Reconciler("jobs", JOBS_PERIOD_SECONDS, self.jobs),
            Reconciler("edge", EDGE_PERIOD_SECONDS, self.edge),
            Reconciler("replicas", REPLICAS_PERIOD_SECONDS, self.replicas),
            Reconciler("leftovers", LEFTOVERS_PERIOD_SECONDS, self.leftovers),
            Reconciler("housekeeping", HOUSEKEEPING_PERIOD_SECONDS, self.housekeeping),
        ]

    async def jobs(self) -> Report:
        """Every accepted job has a workflow; every job whose workflow has ended has ended."""
        unfinished = await self._jobs.submit_unfinished()
        given_up = 0
        for job in unfinished:
            outcome = await self._workflows.outcome(job.job_id)
            if outcome.state in ENDED:
                error = outcome.error or Internal("The work on this job ended without an outcome.")
                await self._give_up[job.kind](job.job_id, error)
                given_up += 1
        return Report(counts={"unfinished": len(unfinished), "given_up": given_up})

    async def edge(self) -> Report:
        """Envoy's files say what the store says; the certificate is renewed in time."""
        return Report(counts={"published": int(await self._edge.publish())})

    async def replicas(self) -> Report:
        """A replica gets traffic as long as its host says that it is ready."""
        states = [ReplicaState.READY, ReplicaState.UNREADY]
        serving = await self._database.read(lambda c: store.replicas_in(c, states))
        by_host: dict[str, list[Replica]] = defaultdict(list)
        for replica in serving:
            by_host[replica.host_id].append(replica)
        changed: set[str] = set()
        silent = 0
        for host_id, replicas in by_host.items():
            try:
                views = await self._vms.list_all(await self._removal.url_of(host_id))
            except IronError as error:
                # Nobody knows better than Envoy then, which sees whether connections succeed.
                _log.warning("host_silent", host_id=host_id, error=str(error))
                silent += 1
                continue
            changed |= await self._compare(replicas, views)
        for deployment_id in changed:
            await self._database.write(lambda c, id_=deployment_id: self._judge(c, id_))
        if changed:
            await self._edge.publish()
        return Report(
            counts={"serving": len(serving), "changed": len(changed), "silent_hosts": silent}
        )

    async def _compare(self, replicas: list[Replica], views: Mapping[str, VmView]) -> set[str]:
        changed: set[str] = set()
        for replica in replicas:
            view = views.get(replica.vm_id)
            ready = view is not None and view.phase is VmPhase.RUNNING and view.ready
            state = ReplicaState.READY if ready else ReplicaState.UNREADY
            if state is replica.state:
                continue
            why = "" if ready else (view.reason if view else "Its VM is gone from its host.")

            def change(old: Replica, state: ReplicaState = state, why: str = why) -> Replica:
                # A deletion may have come first; it wins.
                if old.state not in {ReplicaState.READY, ReplicaState.UNREADY}:
                    return old
                return replace(old, state=state, reason=why)

            await self._removal.change(replica.vm_id, change)
            changed.add(replica.deployment_id)
        return changed

    def _judge(self, connection: Connection, deployment_id: str) -> None:
        replicas = store.replicas_of(connection, deployment_id)
        unready = [each for each in replicas if each.state is ReplicaState.UNREADY]
        reasons = "; ".join(f"replica {each.index}: {each.reason}" for each in unready)
        judged = {DeploymentState.RUNNING, DeploymentState.DEGRADED}

        def change(old: Deployment) -> Deployment:
            if old.state not in judged:
                return old
            state = DeploymentState.DEGRADED if unready else DeploymentState.RUNNING
            return replace(old, state=state, reason=reasons)

        store.change_deployment(connection, deployment_id, self._clock.now_ns(), change)

    async def leftovers(self) -> Report:
        """What a deletion or an undoing could not remove is removed once its host answers."""
        marked = await self._database.read(lambda c: store.replicas_in(c, [ReplicaState.DELETING]))
        counts = {"marked": len(marked), "removed": 0, "waiting": 0}
        for replica in marked:
            if await self._is_worked_on(replica.deployment_id):
                continue
            try:
                await self._removal.delete(replica, LEFTOVER_PATIENCE_SECONDS)
            except NotFound:
                # The host has left the directory; with it went what it ran.
                await self._removal.change(
                    replica.vm_id, lambda old: replace(old, state=ReplicaState.DELETED)
                )
            except IronError as error:
                _log.warning("vm_not_removed", vm_id=replica.vm_id, error=str(error))
                counts["waiting"] += 1
                continue
            counts["removed"] += 1
        now_ns = self._clock.now_ns()
        closed = await self._database.write(lambda c: store.close_emptied(c, now_ns))
        return Report(counts={**counts, "closed": closed})

    async def _is_worked_on(self, deployment_id: str) -> bool:
        jobs = await self._database.read(
            lambda c: job_store.unfinished_job_ids_of(c, deployment_id)
        )
        return bool(jobs)

    async def housekeeping(self) -> Report:
        """Old jobs, their workflows and old idempotency keys are forgotten."""
        now_ns = self._clock.now_ns()
        keys = await self._database.write(lambda c: idempotency.forget(c, IDEMPOTENCY, now_ns))
        jobs = await self._database.write(
            lambda c: job_store.forget_jobs(c, now_ns - KEEP_JOBS_NS, FORGET_AT_ONCE)
        )
        if jobs:
            await self._workflows.forget(jobs)
        return Report(counts={"keys": keys, "jobs": len(jobs)})
