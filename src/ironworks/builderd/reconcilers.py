"""Loops of builderd."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ironworks.builderd.app import Builds
from ironworks.builderd.choices import Choices
from ironworks.builderd.reach import Reach
from ironworks.builderd.types import Build
from ironworks.builderd.uploads import Uploads
from ironworks.builderd.worker import Worker
from ironworks.runtime.reconcile import Reconciler, Report


def reconcilers(
    *,
    builds: Builds,
    worker: Worker,
    reach: Reach,
    uploads: Uploads,
    choices: Choices,
    top_up: Callable[[Sequence[Build]], Awaitable[int]],
) -> list[Reconciler]:
    """Nothing accepted is forgotten, nothing left behind stays, and old idempotency keys go."""

    async def requeue() -> Report:
        waiting = await builds.unended()
        return Report(counts={"waiting": len(waiting), "turns": await top_up(waiting)})

    async def clean() -> Report:
        left = await asyncio.to_thread(worker.clean)
        return Report(counts={"scratch": left, "uploads": await uploads.sweep()})

    async def sweep() -> Report:
        evicted = await asyncio.to_thread(reach.evict)
        again = await choices.encrypt_again()
        keys = await builds.forget_keys()
        return Report(counts={"keys": keys, "blobs": evicted, "credentials": again})

    return [
        # A build is in the queue a moment after it is accepted; what lies between is a crash.
        Reconciler("queue", 30.0, requeue),
        Reconciler("leftovers", 30.0, clean),
        Reconciler("sweep", 3600.0, sweep),
    ]
