from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.builderd.changes import Changes
from ironworks.builderd.decide import take_up
from ironworks.builderd.journal import Journal
from ironworks.builderd.types import BuildState, Progress
from ironworks.model.errors import Aborted, NotFound
from ironworks.runtime.clock import SystemClock
from ironworks.testkit.builds import TENANT, build_world


async def test_who_has_lost_a_build_is_told_at_its_next_write(tmp_path: Path) -> None:
    async with build_world(tmp_path) as world:
        world.paused = True
        build = await world.create(world.image())
        journal = Journal(world.database, Changes(), SystemClock())
        ours = await journal.write(build, lambda now: take_up(build, "a", now), "Ours.")
        theirs = await journal.write(ours, lambda now: take_up(ours, "b", now), "Theirs.")
        with pytest.raises(Aborted):
            await journal.enter(ours, BuildState.PULLING, "Never said.")
        failed = await journal.fail(theirs, NotFound("There is no image."), None)
        assert failed.failure is not None
        assert await journal.find(build.build_id) == failed
        texts = [line.text for line in await world.log(build)]
        assert texts == ["Accepted.", "Ours.", "Theirs.", "Failed: There is no image."]


async def test_progress_is_told_here_at_once_and_elsewhere_now_and_then(tmp_path: Path) -> None:
    async with build_world(tmp_path) as world:
        world.paused = True
        build = await world.create(world.image())
        changes = Changes()
        journal = Journal(world.database, changes, SystemClock())
        told = Progress(step="fetching layers", done_bytes=1, total_bytes=2)
        assert journal.report(build.build_id, told)
        assert not journal.report(build.build_id, replace(told, done_bytes=2))
        assert changes.progress(build.build_id).done_bytes == 2
        await journal.note(build.build_id)
        seen = await world.builds.progress(await world.builds.get(TENANT, build.build_id))
        assert seen.done_bytes == 2
        taken = await journal.write(build, lambda now: take_up(build, "a", now), "Next state.")
        assert await world.builds.progress(taken) == Progress()
