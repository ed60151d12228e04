"""Endpoints of deployments."""

from __future__ import annotations

from ironworks.runtime.settings import Settings
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakeapi import FakeApi


async def test_endpoints_below_localhost_are_found_without_a_resolver(
    fake: tuple[FakeApi, Settings], client: AsyncIronworks
) -> None:
    port = fake[1].gatewayd_url.rpartition(":")[2]
    url = f"http://web-0123456789.ironworks.localhost:{port}/"
    answer = await client.endpoint_get(url, "/healthz")
    assert (answer.status, answer.text) == (200, "ok\n")
    assert answer.headers["content-type"] == "text/plain"
