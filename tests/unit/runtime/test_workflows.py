from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ironworks.model.errors import FailedPrecondition, Internal, NotFound
from ironworks.runtime.identity.caller import current_request_id, request_id_var
from ironworks.runtime.workflows import ENDED, Json, Outcome, Queue, Run, Workflows, WorkflowState

POLL_SECONDS = 0.02


def engine(path: Path, *, total: int = 8, per_partition: int = 8) -> Workflows:
    queue = Queue(name="work", total=total, per_partition=per_partition)
    return Workflows(
        name="test",
        database_url=f"sqlite:///{path}/workflows.db",
        queues=[queue],
        poll_seconds=POLL_SECONDS,
    )


async def ended(workflows: Workflows, workflow_id: str) -> Outcome:
    async with asyncio.timeout(30):
        while True:
            outcome = await workflows.outcome(workflow_id)
            if outcome.state in ENDED:
                return outcome
            await asyncio.sleep(POLL_SECONDS)


def answering(value: Json) -> Callable[[], Awaitable[Json]]:
    async def effect() -> Json:
        return value

    return effect


async def test_a_run_answers_and_its_id_is_used_once(tmp_path: Path) -> None:
    effects: list[int] = []

    async def double(run: Run, argument: Json) -> Json:
        assert isinstance(argument, int)

        async def effect() -> int:
            effects.append(argument)
            return argument * 2

        return await run.step("double", effect)

    workflows = engine(tmp_path)
    workflows.register("double", double)
    await workflows.start()
    try:
        await workflows.submit("double", "one", 21, queue="work", partition="a")
        await workflows.submit("double", "one", 99, queue="work", partition="a")
        outcome = await ended(workflows, "one")
        assert (outcome.state, outcome.answer) == (WorkflowState.SUCCEEDED, 42)
        await workflows.submit("double", "one", 99, queue="work", partition="a")
        assert await workflows.unfinished() == []
        assert effects == [21]
    finally:
        await workflows.stop()


async def test_the_steps_of_a_run_carry_the_id_of_the_request_that_asked_for_it(
    tmp_path: Path,
) -> None:
    async def asking(run: Run, argument: Json) -> Json:
        del argument

        async def effect() -> str:
            return current_request_id()

        return [run.request_id, await run.step("ask", effect)]

    workflows = engine(tmp_path)
    workflows.register("asking", asking)
    await workflows.start()
    request_id_var.set("req-of-the-caller")
    try:
        await workflows.submit("asking", "one", None, queue="work", partition="a")
        assert (await ended(workflows, "one")).answer == ["req-of-the-caller"] * 2
    finally:
        request_id_var.set("")
        await workflows.stop()


async def test_errors_keep_their_class_and_foreign_ones_become_internal(tmp_path: Path) -> None:
    seen: list[str] = []

    async def failing(run: Run, argument: Json) -> Json:
        async def refuse() -> Json:
            raise NotFound("There is no such image.", hint="Check its name.")

        async def break_down() -> Json:
            raise KeyError(argument)

        try:
            await run.step("refuse", refuse)
        except NotFound as error:
            seen.append(str(error))
        return await run.step("break", break_down)

    workflows = engine(tmp_path)
    workflows.register("failing", failing)
    await workflows.start()
    try:
        await workflows.submit("failing", "one", None, queue="work", partition="a")
        outcome = await ended(workflows, "one")
        assert outcome.state is WorkflowState.FAILED
        assert isinstance(outcome.error, Internal)
        assert seen == ["There is no such image. Check its name."]
    finally:
        await workflows.stop()


async def test_limits_hold_in_all_and_for_each_partition(tmp_path: Path) -> None:
    now: dict[str, int] = {"a": 0, "b": 0}
    peaks: dict[str, int] = {"a": 0, "b": 0, "all": 0}

    async def work(run: Run, argument: Json) -> Json:
        partition = str(argument)

        async def effect() -> None:
            now[partition] += 1
            peaks[partition] = max(peaks[partition], now[partition])
            peaks["all"] = max(peaks["all"], sum(now.values()))
            await asyncio.sleep(5 * POLL_SECONDS)
            now[partition] -= 1

        await run.step("work", effect)
        return None

    workflows = engine(tmp_path, total=3, per_partition=2)
    workflows.register("work", work)
    await workflows.start()
    try:
        for number in range(6):
            for partition in ("a", "b"):
                await workflows.submit(
                    "work", f"{partition}{number}", partition, queue="work", partition=partition
                )
        for number in range(6):
            assert (await ended(workflows, f"a{number}")).state is WorkflowState.SUCCEEDED
            assert (await ended(workflows, f"b{number}")).state is WorkflowState.SUCCEEDED
    finally:
        await workflows.stop()
    assert 1 <= peaks["a"] <= 2
    assert 1 <= peaks["b"] <= 2
    assert peaks["all"] <= 3


async def test_a_stopped_engine_goes_on_where_it_was(tmp_path: Path) -> None:
    effects: list[str] = []
    under_way, release = asyncio.Event(), asyncio.Event()

    async def two_steps(run: Run, argument: Json) -> Json:
        async def first() -> Json:
            effects.append("first")
            return argument

        async def second() -> Json:
            effects.append("second")
            under_way.set()
            await release.wait()
            return "done"

        return [await run.step("first", first), await run.step("second", second)]

    workflows = engine(tmp_path)
    workflows.register("two-steps", two_steps)
    await workflows.start()
    await workflows.submit("two-steps", "one", "x", queue="work", partition="a")
    async with asyncio.timeout(30):
        await under_way.wait()
    await workflows.stop()
    release.set()
    again = engine(tmp_path)
    again.register("two-steps", two_steps)
    await again.start()
    try:
        assert (await ended(again, "one")).answer == ["x", "done"]
    finally:
        await again.stop()
    assert effects == ["first", "second", "second"]


async def test_to_thread_of_the_service_works_after_the_engine_has_stopped(tmp_path: Path) -> None:
    workflows = engine(tmp_path)
    await workflows.start()
    await workflows.stop()
    assert await asyncio.to_thread(lambda: 1) == 1


async def test_a_cancelled_run_ends_before_its_next_step(tmp_path: Path) -> None:
    effects: list[str] = []
    under_way, release = asyncio.Event(), asyncio.Event()

    async def two_steps(run: Run, _: Json) -> Json:
        async def first() -> None:
            under_way.set()
            await release.wait()

        async def second() -> None:
            effects.append("second")

        await run.step("first", first)
        await run.step("second", second)
        return None

    workflows = engine(tmp_path)
    workflows.register("two-steps", two_steps)
    await workflows.start()
    try:
        await workflows.submit("two-steps", "one", None, queue="work", partition="a")
        async with asyncio.timeout(30):
            await under_way.wait()
        await workflows.cancel("one")
        release.set()
        assert (await ended(workflows, "one")).state is WorkflowState.CANCELLED
    finally:
        await workflows.stop()
    assert effects == []


async def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    async def nothing(run: Run, argument: Json) -> Json:
        return await run.step("nothing", answering(argument))

    workflows = engine(tmp_path)
    workflows.register("nothing", nothing)
    with pytest.raises(FailedPrecondition):
        workflows.register("nothing", nothing)
    await workflows.start()
    try:
        with pytest.raises(FailedPrecondition):
            await engine(tmp_path).start()
        with pytest.raises(FailedPrecondition):
            workflows.register("late", nothing)
        with pytest.raises(NotFound):
            await workflows.submit("other", "one", None, queue="work", partition="a")
        with pytest.raises(NotFound):
            await workflows.submit("nothing", "one", None, queue="other", partition="a")
        with pytest.raises(NotFound):
            await workflows.outcome("one")
    finally:
        await workflows.stop()


async def test_forgotten_runs_are_gone(tmp_path: Path) -> None:
    async def nothing(run: Run, argument: Json) -> Json:
        return await run.step("nothing", answering(argument))

    workflows = engine(tmp_path)
    workflows.register("nothing", nothing)
    await workflows.start()
    try:
        await workflows.submit("nothing", "one", 1, queue="work", partition="a")
        await ended(workflows, "one")
        await workflows.forget(["one"])
        with pytest.raises(NotFound):
            await workflows.outcome("one")
    finally:
        await workflows.stop()


KILLED = textwrap.dedent("""
    import asyncio, os, signal, sys
    from pathlib import Path
    from ironworks.runtime.workflows import ENDED, Queue, Workflows

    home = Path(sys.argv[1])

    def note(what):
        with (home / "effects").open("a") as file:
            file.write(what + "\\n")

    async def three_steps(run, argument):
        async def first():
            note("first")
            return argument + 1
        async def second():
            note("second")
            if not (home / "killed").exists():
                (home / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return 0
        async def third():
            note("third")
            return 0
        answer = await run.step("first", first)
        await run.step("second", second)
        await run.step("third", third)
        return answer

    async def main():
        workflows = Workflows(
            name="test",
            database_url=f"sqlite:///{home}/workflows.db",
            queues=[Queue(name="work", total=2, per_partition=2)],
            poll_seconds=0.02,
        )
        workflows.register("three-steps", three_steps)
        await workflows.start()
        if not (home / "killed").exists():
            await workflows.submit("three-steps", "one", 1, queue="work", partition="a")
        while (outcome := await workflows.outcome("one")).state not in ENDED:
            await asyncio.sleep(0.02)
        print(outcome.state.value, outcome.answer)
        await workflows.stop()

    asyncio.run(main())
""")


def test_a_killed_process_goes_on_in_its_next_life(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path)]
    first = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr.decode()
    second = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert second.stdout.decode().strip() == "succeeded 2", second.stderr.decode()
    effects = (tmp_path / "effects").read_text().split()
    assert effects == ["first", "second", "second", "third"]
