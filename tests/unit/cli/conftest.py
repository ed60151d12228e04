"""Commands run in this process, against a platform in memory."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from ironworks.cli.main import run
from ironworks.testkit.fakeapi import OPERATOR_KEY, TENANT_KEY, FakeApi, running


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


class Iron:
    """Runs commands; each must end as it is told to."""

    def __init__(
        self,
        api: FakeApi,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        url: str,
    ) -> None:
        self.api = api
        self.url = url
        self.patch = monkeypatch
        self._capsys = capsys

    async def __call__(self, *arguments: str, status: int = 0) -> Done:
        self._capsys.readouterr()
        ended = await asyncio.to_thread(run, arguments)
        captured = self._capsys.readouterr()
        assert ended == status, captured.err
        return Done(ended, captured.out, captured.err)

    def as_operator(self) -> None:
        self.patch.setenv("IRONWORKS_API_KEY", OPERATOR_KEY)


@pytest.fixture
async def iron(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Iron]:
    """Commands of an owner of a tenant."""
    # The platform lives in this process and would log to where the commands write.
    only_faults = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=only_faults)
    async with running(tmp_path / "data") as (api, settings):
        monkeypatch.setenv("IRONWORKS_API_URL", settings.gatewayd_url)
        monkeypatch.setenv("IRONWORKS_API_KEY", TENANT_KEY)
        monkeypatch.setenv("IRONWORKS_DATA_DIR", str(tmp_path / "none"))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        yield Iron(api, monkeypatch, capsys, settings.gatewayd_url)
