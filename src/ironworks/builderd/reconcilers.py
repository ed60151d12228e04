"""Loops of builderd."""

from __future__ import annotations

from ironworks.builderd.app import Builds
from ironworks.runtime.reconcile import Reconciler, Report


def reconcilers(builds: Builds) -> list[Reconciler]:
    """Nothing accepted is forgotten, and old idempotency keys are."""

    async def requeue() -> Report:
        return Report(counts={"waiting": await builds.requeue()})

    async def sweep() -> Report:
        return Report(counts={"keys": await builds.forget_keys()})

    # A build is in the queue a moment after it is accepted; what lies between is a crash.
    return [Reconciler("queue", 30.0, requeue), Reconciler("sweep", 3600.0, sweep)]
