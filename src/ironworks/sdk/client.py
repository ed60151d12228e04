"""The asynchronous client: one object, one attribute a noun."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

from ironworks.model.errors import DeadlineExceeded, InvalidRequest, ResourceExhausted
from ironworks.runtime.clock import Clock, Entropy
from ironworks.sdk.assets import Assets
from ironworks.sdk.builds import Builds
from ironworks.sdk.configuration import Configuration, discover
from ironworks.sdk.connection import Connection, unreachable
from ironworks.sdk.deployments import Deployments
from ironworks.sdk.hosts import Hosts
from ironworks.sdk.invoices import Invoices
from ironworks.sdk.jobs import Jobs
from ironworks.sdk.keys import Keys
from ironworks.sdk.policies import Policies
from ironworks.sdk.registries import Registries
from ironworks.sdk.tenants import Tenants
from ironworks.sdk.usage import Usage
from ironworks.sdk.vms import Vms

MAX_ENDPOINT_BODY_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointResponse:
    """What a deployment's endpoint answered.

    Attributes:
        status: HTTP status.
        headers: By name in lower case; the last of equal names.
        body: At most 10 MiB.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8; what is none becomes `\N{REPLACEMENT CHARACTER}`."""
        return self.body.decode(errors="replace")


class AsyncIronworks:
    """A client of one platform.

    The API key is exchanged for a token at the first call, and the token renewed before it ends.
    Calls that may succeed later are repeated after 100, 200 and 400 ms, with the same idempotency
    key: a repeated call changes nothing twice. Errors are those of `ironworks.model.errors`.

    Args:
        url: The public API; without it, see `ironworks.sdk.configuration`.
        api_key: `iwk_…`.
        ca_file: PEM file of the CA that signed the API's certificate.
        data_dir: Use the platform that runs over this directory of this machine, as its operator.
        clock: Source of time.
        entropy: Source of randomness, for ids.

    Raises:
        FailedPrecondition: no platform is configured.
        InvalidRequest: the configuration is damaged.
    """

    def __init__(
        self,
        url: str = "",
        api_key: str = "",
        ca_file: Path | str | None = None,
        *,
        data_dir: Path | None = None,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        configuration = discover(url, api_key, ca_file, data_dir=data_dir)
        self.connection = Connection(configuration, clock=clock, entropy=entropy)
        self.tenants = Tenants(self.connection)
        self.keys = Keys(self.connection)
        self.deployments = Deployments(self.connection)
        self.jobs = Jobs(self.connection)
        self.vms = Vms(self.connection)
        self.builds = Builds(self.connection)
        self.policies = Policies(self.connection)
        self.registries = Registries(self.connection)
        self.assets = Assets(self.connection)
        self.usage = Usage(self.connection)
        self.invoices = Invoices(self.connection)
        self.hosts = Hosts(self.connection)

    @property
    def configuration(self) -> Configuration:
        """Which platform this is a client of."""
        return self.connection.configuration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self.connection.close()

    async def endpoint_get(
        self,
        url: str,
        path: str = "/",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 30.0,
    ) -> EndpointResponse:
        """GET from a deployment's endpoint, through the gateway, trusting the platform's CA.

        Names below `localhost` go to the address of the API, whatever the machine's resolver says.
        No credential is sent.

        Args:
            url: `Deployment.endpoint`.
            path: Path and query.
            headers: More request headers.
            timeout_seconds: For the whole answer.

        Raises:
            InvalidRequest: the URL is none.
            Unavailable: nothing answers.
            DeadlineExceeded: not in time.
            ResourceExhausted: the answer is larger than 10 MiB.
        """
        host = urlsplit(url).hostname
        if not host or urlsplit(url).scheme not in {"http", "https"}:
            raise InvalidRequest(f"{url!r} is not the URL of an endpoint.")
        http = await self.connection.http(host)
        body = bytearray()
        try:
            async with asyncio.timeout(timeout_seconds):
                async with http.stream("GET", urljoin(url, path), dict(headers or {})) as response:
                    async for piece in response.content:
                        body += piece
                        if len(body) > MAX_ENDPOINT_BODY_BYTES:
                            raise ResourceExhausted(f"The answer of {url} is larger than 10 MiB.")
        except TimeoutError:
            raise DeadlineExceeded(
                f"{url} did not answer within {timeout_seconds:g} seconds."
            ) from None
        except OSError as error:
            raise unreachable(url, str(error)) from None
        return EndpointResponse(
            status=response.status,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=bytes(body),
        )
