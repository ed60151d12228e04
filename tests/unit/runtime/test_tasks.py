from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from ironworks.runtime.tasks import Tasks


async def test_a_task_answers_who_awaits_it() -> None:
    async def work() -> int:
        return 7

    async with Tasks() as tasks:
        assert await tasks.start(work(), name="work") == 7


async def test_leaving_cancels_what_runs_and_waits_for_its_end() -> None:
    ends: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            ends.append("tidied up")

    async with Tasks() as tasks:
        tasks.start(work(), name="work")
        await asyncio.sleep(0)
    assert ends == ["tidied up"]


async def test_what_a_task_starts_on_its_way_out_is_ended_too() -> None:
    ends: list[str] = []
    tasks = Tasks()

    async def second() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ends.append("second")

    async def first() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            tasks.start(second(), name="second")
            await asyncio.sleep(0)

    async with tasks:
        tasks.start(first(), name="first")
        await asyncio.sleep(0)
    assert ends == ["second"]


async def test_a_task_may_stop_its_owner_without_waiting_for_itself() -> None:
    tasks = Tasks()

    async def work() -> str:
        await tasks.stop()
        return "still here"

    async with tasks:
        async with asyncio.timeout(5):
            assert await tasks.start(work(), name="work") == "still here"


async def test_the_failure_of_a_task_that_nobody_awaits_is_logged_under_its_name() -> None:
    async def work() -> None:
        raise ValueError("lost?")

    with capture_logs() as lines:
        async with Tasks() as tasks:
            tasks.start(work(), name="sweeper")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert [(line["event"], line["task"]) for line in lines] == [("task_failed", "sweeper")]


async def test_a_failure_does_not_end_the_other_tasks() -> None:
    async def fail() -> None:
        raise ValueError("its own")

    async def work() -> str:
        await asyncio.sleep(0.01)
        return "done"

    async with Tasks() as tasks:
        failing = tasks.start(fail(), name="fail")
        working = tasks.start(work(), name="work")
        assert await working == "done"
        with pytest.raises(ValueError, match="its own"):
            await failing
