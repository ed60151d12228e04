"""The breaker against the state diagram of the system description, in any order of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from ironworks.runtime.resilience import Admission, Breaker, BreakerState, Verdict

SECOND_NS = 1_000_000_000
DRAWN = {
    (BreakerState.CLOSED, BreakerState.OPEN),
    (BreakerState.OPEN, BreakerState.HALF_OPEN),
    (BreakerState.HALF_OPEN, BreakerState.CLOSED),
    (BreakerState.HALF_OPEN, BreakerState.OPEN),
}


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin, end and hang as they like; what the diagram promises must hold."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(failures=3, window_seconds=30, open_seconds=10, probes=2)
        self.now_ns = 0
        self.probes_under_way = 0
        self.failures_since_closed = 0

    @property
    def state(self) -> BreakerState:
        return self.breaker.state(self.now_ns)

    def moved(self, before: BreakerState) -> None:
        assert before is self.state or (before, self.state) in DRAWN

    @rule(seconds=st.sampled_from([0.5, 3, 9.999999999, 10, 31]))
    def wait(self, seconds: float) -> None:
        before = self.state
        self.now_ns += int(seconds * SECOND_NS)
        self.moved(before)
        assert not (before is BreakerState.HALF_OPEN and self.state is not before)

    @rule(target=calls)
    def begin(self) -> object:
        before = self.state
        admission = self.breaker.admit(self.now_ns)
        assert self.state is before
        if before is BreakerState.CLOSED:
            assert admission is not None
        if before is BreakerState.OPEN:
            assert admission is None
        if before is BreakerState.HALF_OPEN:
            assert (admission is not None) == (self.probes_under_way < 2)
        if admission is None:
            return multiple()  # pyright: ignore[reportUnknownVariableType] - of nothing
        self.probes_under_way += admission.probe
        return admission

    @rule(admission=consumes(calls), verdict=st.sampled_from(Verdict))
    def end(self, admission: Admission, verdict: Verdict) -> None:
        before = self.state
        self.breaker.record(admission, verdict, self.now_ns)
        self.probes_under_way -= admission.probe
        self.moved(before)
        if before is BreakerState.OPEN or verdict is Verdict.UNKNOWN:
            assert self.state is before
        if before is BreakerState.CLOSED and verdict is Verdict.WORKS:
            assert self.state is before
        if (before, self.state) == (BreakerState.CLOSED, BreakerState.OPEN):
            assert self.failures_since_closed >= 2
        closed = self.state is BreakerState.CLOSED
        failed = before is BreakerState.CLOSED and verdict is Verdict.FAILS
        self.failures_since_closed = self.failures_since_closed + failed if closed else 0

    @invariant()
    def probes_are_bounded(self) -> None:
        assert 0 <= self.probes_under_way <= 2


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
