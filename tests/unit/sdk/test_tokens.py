"""The token of an API key: made once, shared, renewed in time."""

from __future__ import annotations

import asyncio

import pytest

from ironworks.model.errors import Unauthenticated, Unavailable
from ironworks.model.units import NS_PER_SECOND
from ironworks.sdk.tokens import MIN_USE_SECONDS, Token, TokenSource
from ironworks.testkit.clock import FakeClock

LIFE_SECONDS = 600


class Issuer:
    """Gives out numbered tokens; `clock_ahead_seconds` is how far its clock is before ours."""

    def __init__(self, clock: FakeClock, *, clock_ahead_seconds: int = 0) -> None:
        self.clock = clock
        self.ahead_ns = clock_ahead_seconds * NS_PER_SECOND
        self.given = 0
        self.refuse = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def exchange(self) -> Token:
        self.given += 1
        number = self.given
        await self.gate.wait()
        if self.refuse:
            raise Unauthenticated("The key is not valid.")
        expires_at_ns = self.clock.now_ns() + self.ahead_ns + LIFE_SECONDS * NS_PER_SECOND
        return Token(value=f"token-{number}", expires_at_ns=expires_at_ns)


async def test_a_token_is_renewed_a_minute_before_it_ends() -> None:
    clock = FakeClock()
    issuer = Issuer(clock)
    tokens = TokenSource(issuer.exchange, clock)
    assert await tokens.get() == "token-1"
    await clock.advance(LIFE_SECONDS - 61)
    assert await tokens.get() == "token-1"
    await clock.advance(1)
    assert await tokens.get() == "token-2"
    assert issuer.given == 2


async def test_many_calls_at_once_make_one_exchange() -> None:
    clock = FakeClock()
    issuer = Issuer(clock)
    issuer.gate.clear()
    tokens = TokenSource(issuer.exchange, clock)
    waiting = asyncio.gather(*(tokens.get() for _ in range(50)))
    await asyncio.sleep(0)
    issuer.gate.set()
    assert set(await waiting) == {"token-1"}
    assert issuer.given == 1


async def test_many_calls_at_once_share_a_refusal() -> None:
    clock = FakeClock()
    issuer = Issuer(clock)
    issuer.refuse = True
    issuer.gate.clear()
    tokens = TokenSource(issuer.exchange, clock)
    waiting = asyncio.gather(*(tokens.get() for _ in range(50)), return_exceptions=True)
    await asyncio.sleep(0)
    issuer.gate.set()
    outcomes = await waiting
    assert all(isinstance(outcome, Unauthenticated) for outcome in outcomes)
    assert issuer.given == 1


async def test_a_refusal_is_not_remembered() -> None:
    clock = FakeClock()
    issuer = Issuer(clock)
    issuer.refuse = True
    tokens = TokenSource(issuer.exchange, clock)
    with pytest.raises(Unauthenticated):
        await tokens.get()
    issuer.refuse = False
    assert await tokens.get() == "token-2"


async def test_a_rejected_token_is_not_used_again_but_a_newer_one_stays() -> None:
    clock = FakeClock()
    tokens = TokenSource(Issuer(clock).exchange, clock)
    first = await tokens.get()
    tokens.reject(first)
    second = await tokens.get()
    tokens.reject(first)
    assert await tokens.get() == second == "token-2"


async def test_a_clock_that_differs_from_the_platforms_does_not_double_every_call() -> None:
    clock = FakeClock()
    issuer = Issuer(clock, clock_ahead_seconds=-3600)
    tokens = TokenSource(issuer.exchange, clock)
    for _ in range(10):
        await tokens.get()
    assert issuer.given == 1
    await clock.advance(MIN_USE_SECONDS)
    await tokens.get()
    assert issuer.given == 2


async def test_setting_the_wall_clock_changes_nothing() -> None:
    clock = FakeClock()
    issuer = Issuer(clock)
    tokens = TokenSource(issuer.exchange, clock)
    await tokens.get()
    clock.jump(86_400)
    await tokens.get()
    clock.jump(-2 * 86_400)
    await tokens.get()
    assert issuer.given == 1


async def test_a_failed_exchange_can_be_repeated_by_the_one_who_waited() -> None:
    clock = FakeClock()
    answers = iter([Unavailable("down"), Token(value="t", expires_at_ns=clock.now_ns())])

    async def exchange() -> Token:
        answer = next(answers)
        if isinstance(answer, Token):
            return answer
        raise answer

    tokens = TokenSource(exchange, clock)
    with pytest.raises(Unavailable):
        await tokens.get()
    assert await tokens.get() == "t"
