"""The durable queue of builds, on the platform's workflow engine.

A build is one step: the worker itself begins again wherever it was killed, and what it decides is
in its own record. So the engine has to keep three things only: that an accepted build is run, how
many run at once in all and of one tenant, and that a build whose process died is taken up again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from ironworks.builderd.types import Build, BuilderSettings
from ironworks.runtime.workflows import Json, Queue, Run, Workflows

_WORKFLOW = "build"
_QUEUE = "builds"


def make_workflows(settings: BuilderSettings, run: Callable[[str], Awaitable[None]]) -> Workflows:
    """The engine, with the one workflow of builderd; `run` runs a build to its end."""
    path: Path = settings.builder_dir / "queue.db"
    workflows = Workflows(
        name="builderd",
        database_url=f"sqlite:///{path}",
        queues=[
            Queue(
                name=_QUEUE,
                total=settings.max_builds,
                per_partition=settings.max_builds_per_tenant,
            )
        ],
    )

    async def build(step: Run, build_id: Json) -> Json:
        if not isinstance(build_id, str):
            return None

        async def effect() -> Json:
            await run(build_id)
            return None

        return await step.step("run", effect)

    workflows.register(_WORKFLOW, build)
    return workflows


async def enqueue(workflows: Workflows, build: Build) -> None:
    """Put a build in the queue; one that is in it stays as it is."""
    await workflows.submit(
        _WORKFLOW, build.build_id, build.build_id, queue=_QUEUE, partition=build.tenant_id
    )
