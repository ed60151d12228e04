"""A job's stages as lines that a person can follow."""

from __future__ import annotations

from ironworks.cli.output import duration, state_name
from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb

_ENDED = {
    jobs_pb.JobStageState.COMPLETED: "done",
    jobs_pb.JobStageState.FAILED: "failed",
    jobs_pb.JobStageState.SKIPPED: "not needed",
}


class JobLines:
    """Turns each version of a job into the lines that are news since the one before."""

    def __init__(self) -> None:
        self._said: set[tuple[jobs_pb.JobStageKind, bool]] = set()

    def news(self, job: jobs_pb.Job) -> list[str]:
        """What to say now: stages that have begun, and stages that have ended."""
        lines: list[str] = []
        for stage in job.stages:
            ended = stage.state in _ENDED
            begun = stage.state is jobs_pb.JobStageState.RUNNING
            if (ended or begun) and (stage.kind, ended) not in self._said:
                self._said |= {(stage.kind, ended), (stage.kind, False)}
                lines.append(stage_line(stage))
        return lines


def stage_line(stage: jobs_pb.JobStage) -> str:
    """`booting    done in 3.4 s  1 of 1`, or `booting    …` while it lasts."""
    parts = [f"{state_name(stage.kind):<10}"]
    if stage.state not in _ENDED:
        return f"{parts[0]} …"
    if stage.state is jobs_pb.JobStageState.SKIPPED or not stage.started_at_ns:
        parts.append(_ENDED[stage.state])
    else:
        took = duration(stage.ended_at_ns - stage.started_at_ns)
        word = "in" if stage.state is jobs_pb.JobStageState.COMPLETED else "after"
        parts.append(f"{_ENDED[stage.state]} {word} {took}")
    if stage.detail:
        parts.append(stage.detail)
    return " ".join(parts).rstrip()
