import re

from ironworks.metald.steps import NoSteps, Step
from ironworks.metald.types import StepTiming


async def test_in_production_a_step_is_just_taken() -> None:
    for step in Step:
        assert await NoSteps().reach(step, "vm_x") is None  # type: ignore[func-returns-value]


def test_names_read_as_what_and_how_and_fit_the_store() -> None:
    for step in Step:
        assert re.fullmatch(r"[a-z]+\.[a-z]+", step)
        assert len(StepTiming(step=step, started_at_ns=0, duration_ns=0).step) <= 32
