"""The durable queue of builds, on the platform's workflow engine.

A run of the queue is a turn, not a build: which build it takes up is decided when it begins, by the
priorities and by fairness among tenants as they are then. So there are as many turns as there are
builds that have not ended, and none of them is any build's own. The engine keeps three things: that
a turn is run, how many run at once in one worker, and that the turn of a worker that died goes on,
elsewhere if there is another worker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ironworks.builderd.types import Build, BuilderSettings
from ironworks.runtime.workflows import Json, Queue, Run, Workflows
from ironworks.storage.sql import sqlite_url

_WORKFLOW = "build-turn"
_QUEUE = "build-turns"


def make_workflows(settings: BuilderSettings, serve: Callable[[str], Awaitable[None]]) -> Workflows:
    """The engine, with the one workflow of builderd; `serve` serves a turn to its end."""
    shared = settings.shared
    workflows = Workflows(
        name="builderd",
        database_url=settings.builderd_database_url
        or sqlite_url(settings.builder_dir / "queue.db"),
        queues=[Queue(name=_QUEUE, per_process=settings.max_builds)],
        executor_id=settings.worker_name if shared else "local",
        lease_seconds=settings.builderd_lease_seconds if shared else 0,
    )

    async def turn(step: Run, _: Json) -> Json:
        async def effect() -> Json:
            await serve(step.workflow_id)
            return None

        return await step.step("serve", effect)

    workflows.register(_WORKFLOW, turn)
    return workflows


async def enqueue(workflows: Workflows, build: Build) -> None:
    """Add the turn that a build brings; once, however often this is called."""
    await _submit(workflows, build.build_id, build)


async def top_up(workflows: Workflows, builds: Sequence[Build]) -> int:
    """Make sure that there are as many turns as builds that have not ended; answers how many came.

    A turn is lost when it has been given up, or has served another build than the one that brought
    it and that one's turn was never added.
    """
    before = len(await workflows.unfinished())
    for build in builds:
        await enqueue(workflows, build)
    missing = len(builds) - len(await workflows.unfinished())
    for build in builds[: max(missing, 0)]:
        await _submit(workflows, f"{build.build_id}.{build.revision}", build)
    return len(await workflows.unfinished()) - before


async def _submit(workflows: Workflows, turn: str, build: Build) -> None:
    await workflows.submit(_WORKFLOW, turn, None, queue=_QUEUE, partition=build.tenant_id)
