"""What a person reads while a job works."""

from __future__ import annotations

from ironworks.cli.progress import JobLines
from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb
from ironworks.gen.ironworks.gatewayd.v1.jobs_pb import JobStageKind as Kind
from ironworks.gen.ironworks.gatewayd.v1.jobs_pb import JobStageState as State

MS = 1_000_000


def stage(kind: Kind, state: State, took_ms: int = 0, detail: str = "") -> jobs_pb.JobStage:
    begun = 0 if state in {State.PENDING, State.SKIPPED} else 1_000 * MS
    ended = begun + took_ms * MS if state in {State.COMPLETED, State.FAILED} else 0
    return jobs_pb.JobStage(
        kind=kind, state=state, started_at_ns=begun, ended_at_ns=ended, detail=detail
    )


def test_each_stage_is_told_once_when_it_begins_and_once_when_it_ends() -> None:
    lines = JobLines()
    pending = stage(Kind.BOOTING, State.PENDING)
    building = jobs_pb.Job(stages=[stage(Kind.BUILDING, State.RUNNING), pending])
    assert lines.news(building) == ["building   …"]
    assert lines.news(building) == []
    built = stage(Kind.BUILDING, State.COMPLETED, took_ms=1200, detail="80 MiB")
    booting = jobs_pb.Job(stages=[built, stage(Kind.BOOTING, State.RUNNING)])
    assert lines.news(booting) == ["building   done in 1.2 s 80 MiB", "booting    …"]
    failed = jobs_pb.Job(stages=[built, stage(Kind.BOOTING, State.FAILED, took_ms=30)])
    assert lines.news(failed) == ["booting    failed after 30 ms"]


def test_a_stage_that_ended_between_two_looks_is_told_once() -> None:
    lines = JobLines()
    done = jobs_pb.Job(stages=[stage(Kind.ROUTING, State.COMPLETED, took_ms=5)])
    assert lines.news(done) == ["routing    done in 5 ms"]
    assert lines.news(done) == []


def test_a_stage_that_is_not_needed_says_so() -> None:
    skipped = jobs_pb.Job(stages=[stage(Kind.BUILDING, State.SKIPPED, detail="already built")])
    assert JobLines().news(skipped) == ["building   not needed already built"]
