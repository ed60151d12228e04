import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ironworks.metald.app import boot, create, health, stop
from ironworks.metald.app.stop import Shutdown
from ironworks.metald.network.naming import SlotNames
from ironworks.metald.types import Readiness, Vm, VmState
from ironworks.model.errors import DeadlineExceeded, FailedPrecondition
from ironworks.testkit.metald import TENANT, World, vm_spec, world


class Guest:
    """A server on loopback in place of the guest's."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\n\r\n"
        self.hang = False
        self.requests: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.hang:
            # Until the other side gives up.
            await reader.read()
        self.requests.append(await reader.readline())
        writer.write(self.answer)
        writer.close()


@asynccontextmanager
async def serving(guest: Guest, port: int = 0) -> AsyncGenerator[None]:
    server = await asyncio.start_server(guest.serve, "127.0.0.1", port)
    guest.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()


@pytest.fixture
async def guest() -> AsyncGenerator[Guest]:
    made = Guest()
    async with serving(made):
        yield made


@pytest.fixture
async def w(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[World]:
    async with world(tmp_path) as made:
        names = made.network.names

        def on_loopback(slot: int) -> SlotNames:
            return replace(names(slot), address="127.0.0.1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(made.network, "names", on_loopback)
        yield made


@pytest.mark.parametrize(
    ("answer", "expected", "passed"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 0, True),
        (b"HTTP/1.0 302 Found\r\n\r\n", 0, True),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 0, False),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 404, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", 204, False),
        (b"SSH-2.0-OpenSSH\r\n", 0, False),
        (b"HTTP/1.1 abc\r\n", 0, False),
        (b"HTTP/1.1\r\n", 0, False),
        (b"", 0, False),
        (b"x" * 100_000, 0, False),
    ],
)
async def test_an_http_check_reads_the_status_and_no_more(
    guest: Guest, answer: bytes, expected: int, passed: bool
) -> None:
    guest.answer = answer
    check = Readiness(port=guest.port, http_path="/healthz?deep=1", expected_status=expected)
    assert await health.passes("127.0.0.1", check) is passed
    assert guest.requests == [b"GET /healthz?deep=1 HTTP/1.1\r\n"]


async def test_a_tcp_check_asks_nothing_of_what_listens(guest: Guest) -> None:
    assert await health.passes("127.0.0.1", Readiness(port=guest.port))
    assert not await health.passes("127.0.0.1", Readiness(port=1))


async def test_a_server_that_does_not_answer_in_time_fails_the_try(guest: Guest) -> None:
    guest.hang = True
    check = Readiness(port=guest.port, http_path="/", timeout_seconds=0.05)
    assert not await health.passes("127.0.0.1", check)


async def created(w: World, check: Readiness) -> Vm:
    return await create.create_vm(
        w.context, tenant_id=TENANT, vm_id="", spec=vm_spec(readiness=check), idempotency_key=""
    )


async def booted(w: World, check: Readiness, timeout_seconds: float = 10) -> Vm:
    vm = await created(w, check)
    return await boot.boot_vm(w.context, vm, timeout_seconds=timeout_seconds, detach=False)


async def until(w: World, vm: Vm, fits: Callable[[Vm], bool]) -> Vm:
    async with asyncio.timeout(10):
        while not fits(now := await w.context.read(vm.vm_id)):
            await w.context.clock.sleep(0.01)
    return now


async def test_a_vm_runs_when_its_check_has_passed_as_often_as_asked(
    w: World, guest: Guest
) -> None:
    check = Readiness(port=guest.port, http_path="/", success_threshold=3, period_seconds=0.05)
    assert (await booted(w, check)).ready
    assert len(guest.requests) == 3


async def test_a_vm_whose_check_never_passes_is_failed(w: World, guest: Guest) -> None:
    guest.answer = b"HTTP/1.1 500 No\r\n\r\n"
    with pytest.raises(DeadlineExceeded):
        await booted(w, Readiness(port=guest.port, http_path="/"), timeout_seconds=1)
    assert await w.left() == {}


async def test_a_check_that_fails_later_takes_the_vm_out_and_back(w: World, guest: Guest) -> None:
    check = Readiness(port=guest.port, http_path="/up", period_seconds=0.05, failure_threshold=2)
    vm = await booted(w, check)
    guest.answer = b"HTTP/1.1 503 Busy\r\n\r\n"
    unready = await until(w, vm, lambda now: not now.ready)
    assert unready.state is VmState.RUNNING
    assert "/up on port" in unready.reason
    guest.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    assert "passes again" in (await until(w, vm, lambda now: now.ready)).reason
    await stop.delete_vm(w.context, await w.context.read(vm.vm_id), force=True)
    assert w.context.monitors == {}


async def test_an_answer_that_cannot_be_written_is_written_later(
    w: World, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Readiness(port=guest.port, http_path="/", period_seconds=0.05, failure_threshold=1)
    vm, refused = await booted(w, check), asyncio.Event()

    async def full(_work: object) -> None:
        refused.set()
        raise FailedPrecondition("The disk of the database is full.")

    monkeypatch.setattr(w.context.db, "write", full)
    guest.answer = b"no"
    await refused.wait()
    monkeypatch.undo()
    assert (await until(w, vm, lambda now: not now.ready)).state is VmState.RUNNING


async def test_a_pause_is_no_failure_and_readiness_is_asked_anew_after_it(
    w: World, guest: Guest
) -> None:
    check = Readiness(port=guest.port, http_path="/", period_seconds=0.05, failure_threshold=1)
    paused = await stop.pause_vm(w.context, await booted(w, check))
    guest.answer = b"no"
    await asyncio.sleep(0.2)
    assert (await w.context.read(paused.vm_id)).generation == paused.generation
    guest.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    resumed = await stop.resume_vm(w.context, paused)
    assert not resumed.ready
    await until(w, resumed, lambda now: now.ready)


async def test_a_check_does_not_get_in_the_way_of_a_transition(w: World, guest: Guest) -> None:
    check = Readiness(port=guest.port, http_path="/", period_seconds=0.05, failure_threshold=1)
    vm = await booted(w, check)
    w.context.operations.begin(vm.vm_id, "boot")
    guest.answer = b"no"
    await asyncio.sleep(0.2)
    assert (await w.context.read(vm.vm_id)).ready
    w.context.operations.end(vm.vm_id)
    await until(w, vm, lambda now: not now.ready)
    ask = Shutdown(timeout_seconds=5, force=False, reason="asked")
    now = await w.context.read(vm.vm_id)
    assert (await stop.shutdown_vm(w.context, now, ask)).state is VmState.STOPPED
