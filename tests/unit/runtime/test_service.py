from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.runtime.identity import ensure_service_keys
from ironworks.runtime.process import run
from ironworks.runtime.reconcile import Reconciler, Report
from ironworks.runtime.service import Chassis, Parts, make_chassis, run_service
from ironworks.runtime.settings import BadSettings, Settings


@pytest.fixture(params=[False, True], ids=["alone", "shared"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that is taken; by a server like ours, which lets others share it, or by any."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, request.param)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def chassis(data_dir: Path, url: str = "http://127.0.0.1:1") -> Chassis[Settings]:
    ensure_service_keys(data_dir)
    return make_chassis("metald", Settings(data_dir=data_dir, metald_url=url))


@asynccontextmanager
async def nothing(_: Chassis[Settings]) -> AsyncGenerator[Parts]:
    yield Parts(applications=[])


MAIN = """
from contextlib import asynccontextmanager
from ironworks.runtime.service import Parts, main
from ironworks.runtime.settings import Settings

@asynccontextmanager
async def nothing(_):
    yield Parts(applications=[])

main("metald", Settings, nothing)
"""


async def started(data_dir: Path) -> tuple[int, list[str]]:
    """Exit status and standard error of a service process that cannot start."""
    env = {**os.environ, "IRONWORKS_DATA_DIR": str(data_dir)}
    done = await run([sys.executable, "-c", MAIN], timeout_seconds=60, env=env, check=False)
    return done.status, done.stderr.decode().splitlines()


async def test_a_service_without_its_key_says_so_in_one_sentence_and_its_own_status(
    tmp_path: Path,
) -> None:
    status, (line, sentence) = await started(tmp_path)
    assert status == FailedPrecondition.exit_status
    assert sentence.startswith("metald: The key metald.json cannot be read. `iron up`")
    logged = json.loads(line)
    assert logged["message"] == "cannot_start"
    assert str(tmp_path) in logged["ctx_path"]


async def test_corrupt_settings_are_one_sentence_too(tmp_path: Path) -> None:
    (tmp_path / "ironworks.toml").write_text("max_body_bytes = 1\n")
    status, lines = await started(tmp_path)
    assert status == BadSettings.exit_status
    assert "max_body_bytes" in lines[-1]
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.parametrize("url", ["http://127.0.0.1", "nowhere", "http://:80"])
async def test_a_url_without_host_and_port_cannot_be_listened_on(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidRequest, match="names no host and port"):
        await run_service(chassis(tmp_path, url), nothing)


async def test_a_port_that_is_taken_is_neither_shared_nor_waited_for(
    tmp_path: Path, port: int
) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(FailedPrecondition, match=f"port {port} of 127.0.0.1 .* in use"):
            await run_service(chassis(tmp_path, f"http://127.0.0.1:{port}"), nothing)


async def test_what_was_composed_is_taken_down_after_the_loops_have_ended(tmp_path: Path) -> None:
    order: list[str] = []
    stop = asyncio.Event()

    async def activate() -> Report:
        order.append("activated")
        stop.set()
        return Report()

    @asynccontextmanager
    async def compose(_: Chassis[Settings]) -> AsyncGenerator[Parts]:
        order.append("composed")
        yield Parts(applications=[], reconcilers=[Reconciler("sweeper", 60, activate)])
        order.append("taken down")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    one = chassis(tmp_path, url)
    await run_service(one, compose, stop)
    assert order == ["composed", "activated", "taken down"]
    metrics = generate_latest(one.registry).decode()
    assert 'ironworks_reconciler_activations{name="sweeper"} 1.0' in metrics
    assert 'ironworks_reconciler_failing{name="sweeper"} 0.0' in metrics


async def test_a_service_that_cannot_be_composed_does_not_start(tmp_path: Path) -> None:
    @asynccontextmanager
    async def compose(_: Chassis[Settings]) -> AsyncGenerator[Parts]:
        raise FailedPrecondition("No kernel.")
        yield Parts(applications=[])

    with pytest.raises(FailedPrecondition, match="No kernel"):
        await run_service(chassis(tmp_path), compose)
