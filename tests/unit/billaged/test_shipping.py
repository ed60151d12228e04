from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.billaged import decide
from ironworks.billaged.outbox import Outbox
from ironworks.billaged.shipping import Shipper
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.model.errors import AlreadyExists, InvalidRequest, IronError, Unavailable
from ironworks.model.ids import derived_id
from ironworks.runtime.resilience import BreakerState
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metering import FakeBatches


class NoWait(FakeClock):
    """Sleeping takes no time of ours, and is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._move_to(self.monotonic_ns() + int(seconds * 1e9))


async def waiting(directory: Path, names: list[str]) -> Outbox:
    outbox = Outbox(directory)
    outbox.open(lambda _: ())
    for name in names:
        request = batch_pb.SubmitBatchRequest(batch_id=derived_id("bat", name))
        await outbox.put(request, (), 0)
        outbox.release(request.batch_id)
    return outbox


def ids(names: list[str]) -> list[str]:
    return [derived_id("bat", name) for name in names]


def failures(kind: type[IronError], count: int) -> list[IronError]:
    return [kind("no")] * count


async def test_the_oldest_go_first_and_are_forgotten_when_acknowledged(tmp_path: Path) -> None:
    outbox = await waiting(tmp_path, ["z", "a", "m"])
    batches = FakeBatches()
    shipper = Shipper(outbox=outbox, batches=batches, clock=NoWait())
    assert await shipper.ship() == 3
    assert [one.batch_id for one in batches.received] == ids(["z", "a", "m"])
    assert outbox.waiting == ()
    assert await shipper.ship() == 0


async def test_after_an_outage_what_is_new_does_not_wait_for_all_that_is_old(
    tmp_path: Path,
) -> None:
    names = [f"{number:02d}" for number in range(decide.BACKLOG + 6)]
    outbox, batches = await waiting(tmp_path, names), FakeBatches()
    assert await Shipper(outbox=outbox, batches=batches, clock=NoWait()).ship() == len(names)
    sent = [one.batch_id for one in batches.received]
    # Until few are left: these go in their order.
    assert sent == ids([*names[:3], names[-1], *names[3:-1]])


async def test_retries_wait_100_200_400_ms(tmp_path: Path) -> None:
    outbox, clock = await waiting(tmp_path, ["one"]), NoWait()
    batches = FakeBatches(failures=failures(Unavailable, 3))
    assert await Shipper(outbox=outbox, batches=batches, clock=clock).ship() == 1
    assert clock.slept == [0.1, 0.2, 0.4]


async def test_an_outage_keeps_everything_and_opens_the_breaker(tmp_path: Path) -> None:
    outbox, clock = await waiting(tmp_path, ["one", "two"]), NoWait()
    batches = FakeBatches(failures=failures(Unavailable, 5))
    shipper = Shipper(outbox=outbox, batches=batches, clock=clock)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await shipper.ship()
    assert shipper.breaker_state is BreakerState.OPEN
    assert [one.batch_id for one in outbox.waiting] == ids(["one", "two"])
    assert shipper.counts.failures == 2
    with pytest.raises(Unavailable, match="paused"):
        await shipper.ship()
    assert batches.received == []
    await clock.sleep(10)
    assert await shipper.ship() == 2
    assert shipper.counts.last_error == ""


async def test_a_batch_that_is_refused_waits_and_the_others_go_on(tmp_path: Path) -> None:
    outbox = await waiting(tmp_path, ["bad", "good"])
    batches = FakeBatches(failures=failures(InvalidRequest, 1))
    shipper = Shipper(outbox=outbox, batches=batches, clock=NoWait())
    with pytest.raises(InvalidRequest):
        await shipper.ship()
    assert [one.batch_id for one in batches.received] == ids(["good"])
    assert [one.batch_id for one in outbox.waiting] == ids(["bad"])


async def test_a_batch_in_conflict_is_kept_aside_for_the_operator(tmp_path: Path) -> None:
    outbox = await waiting(tmp_path, ["twice"])
    shipper = Shipper(
        outbox=outbox, batches=FakeBatches(failures=failures(AlreadyExists, 1)), clock=NoWait()
    )
    with pytest.raises(AlreadyExists):
        await shipper.ship()
    assert outbox.waiting == ()
    assert len(list((tmp_path / "refused").iterdir())) == 1
