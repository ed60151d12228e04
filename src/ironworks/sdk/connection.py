"""Calls to a platform: token, request id, idempotency key, deadline, retries, errors of ours."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from protobuf import Message
from pyqwest import Client, HTTPTransport, HTTPVersion

from ironworks import __version__
from ironworks.gen.ironworks.gatewayd.v1 import tokens_pb
from ironworks.gen.ironworks.gatewayd.v1.tokens_connect import TokenServiceClient
from ironworks.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from ironworks.model.ids import new_id
from ironworks.model.units import NS_PER_MS, NS_PER_SECOND
from ironworks.runtime import resilience
from ironworks.runtime.clock import Clock, Entropy, SystemClock, SystemEntropy
from ironworks.runtime.rpc.direct import DIRECT
from ironworks.runtime.rpc.errors import cancellation_kept, from_connect
from ironworks.sdk.configuration import Configuration, is_loopback
from ironworks.sdk.tokens import Token, TokenSource

CALL_TIMEOUT_SECONDS = 30.0
CONNECT_TIMEOUT_SECONDS = 5.0
SETTLE_SECONDS = 0.02
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_C = TypeVar("_C", bound=ConnectClient)
_Answer = TypeVar("_Answer")
_NO_KEY = Unauthenticated(
    "No API key is configured for this platform.",
    hint="Run `iron login`, or set IRONWORKS_API_KEY.",
)


async def addresses_of(host: str) -> list[str]:
    """IP addresses of a host name; names below `localhost` are this machine.

    Raises:
        NotFound: there is no such name.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        if is_loopback(host):
            return ["127.0.0.1"]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        raise NotFound(f"There is no host {host}.", hint="Is the address right?") from None
    return sorted({str(entry[4][0]) for entry in found})


class Connection:
    """One platform, one API key, one pool of connections.

    Args:
        configuration: Which platform, which key.
        clock: Source of time.
        entropy: Source of randomness, for ids.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        self.configuration = configuration
        self.clock: Clock = clock or SystemClock()
        self._entropy: Entropy = entropy or SystemEntropy()
        self._transports: dict[str, HTTPTransport] = {}
        self._clients: dict[object, ConnectClient] = {}
        self._tokens = TokenSource(self._exchange, self.clock)

    async def close(self) -> None:
        """Close every connection."""
        transports = list(self._transports.values())
        self._transports.clear()
        self._clients.clear()
        for transport in transports:
            await transport.aclose()
        if transports:
            # Threads of the HTTP client drop what they hold of Python's after we were answered. One
            # that does so while the interpreter ends aborts the process, when all work was done.
            await asyncio.sleep(SETTLE_SECONDS)

    async def http(self, host: str = "") -> Client:
        """HTTP client for the API or, with `host`, for a deployment's endpoint."""
        if host not in self._transports:
            overrides: dict[str, list[str]] | None = None
            if host and is_loopback(host):
                # Endpoints live below `localhost` on one machine, which few resolvers know.
                overrides = {host: await addresses_of(self.configuration.host)}
            self._transports.setdefault(host, self._transport(overrides))
        return Client(self._transports[host])

    def _transport(self, overrides: dict[str, list[str]] | None = None) -> HTTPTransport:
        configuration = self.configuration
        plain = urlsplit(configuration.url).scheme == "http"
        ca = None if plain or configuration.ca_file is None else self._read_ca()
        return HTTPTransport(
            tls_ca_cert=ca,
            tls_include_system_certs=ca is None and not plain,
            http_version=HTTPVersion.HTTP2 if plain else None,
            proxy=DIRECT if configuration.is_local else None,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            dns_overrides=overrides,
            use_system_dns=True,
            follow_redirects=False,
            enable_otel=False,
        )

    def _read_ca(self) -> bytes:
        path = self.configuration.ca_file
        try:
            return path.read_bytes() if path is not None else b""
        except OSError as error:
            raise InvalidRequest(
                f"The CA file {path} cannot be read: {error.strerror}.",
                hint="Give the platform's CA with --ca-file or IRONWORKS_CA_FILE.",
            ) from None

    async def service(self, kind: Callable[..., _C]) -> _C:
        """The generated client of this kind."""
        if kind not in self._clients:
            self._clients[kind] = kind(
                self.configuration.url,
                read_max_bytes=MAX_MESSAGE_BYTES,
                # Requests are small, or bytes of assets, which are compressed already.
                send_compression=None,
                http_client=await self.http(),
            )
        return cast("_C", self._clients[kind])

    async def call(
        self,
        kind: Callable[..., _C],
        method: Callable[..., Awaitable[_Answer]],
        request: Message[Any],
        timeout_seconds: float = CALL_TIMEOUT_SECONDS,
    ) -> _Answer:
        """Call a method; what may succeed later is repeated, always with the same idempotency key.

        Args:
            kind: Generated client class, for example `DeploymentServiceClient`.
            method: Its method, for example `DeploymentServiceClient.create_deployment`.
            request: The message. If it takes an idempotency key and has none, it gets one.
            timeout_seconds: For all attempts together.

        Raises:
            IronError: what the platform answered, or that it does not answer.
        """
        client = await self.service(kind)
        self._give_key(request)
        headers = self._headers()
        ends_ns = self.clock.monotonic_ns() + int(timeout_seconds * NS_PER_SECOND)

        async def attempt() -> _Answer:
            return await self._authenticated(
                lambda token: self._once(
                    method, client, request, headers | token, timeout_seconds, ends_ns
                )
            )

        return await resilience.call(attempt, clock=self.clock)

    async def stream(
        self,
        kind: Callable[..., _C],
        method: Callable[..., AsyncIterator[_Answer]],
        request: Message[Any],
    ) -> AsyncGenerator[_Answer]:
        """Messages of a stream, as they come; one that breaks raises, and is not repeated here."""
        client = await self.service(kind)
        headers = self._headers()
        for again in (True, False):
            token = await self._tokens.get()
            headers["authorization"] = f"Bearer {token}"
            messages = cast("AsyncGenerator[_Answer]", method(client, request, headers=headers))
            try:
                async with aclosing(messages):
                    async for message in messages:
                        yield message
            except ConnectError as error:
                explained = self._explain(error)
                if not isinstance(explained, Unauthenticated):
                    raise explained from None
                self._tokens.reject(token)
                if not again:
                    raise explained from None
            else:
                return

    async def send(
        self,
        kind: Callable[..., _C],
        method: Callable[..., Awaitable[_Answer]],
        messages: Callable[[], AsyncIterator[Message[Any]]],
    ) -> _Answer:
        """Send a stream of messages; one that breaks raises, and is not repeated here.

        Args:
            kind: Generated client class.
            method: Its method that takes a stream.
            messages: Makes the stream, again if the token had to be renewed.
        """
        client = await self.service(kind)
        headers = self._headers()
        return await self._authenticated(
            lambda token: self._once(method, client, messages(), headers | token, None)
        )

    async def token(self) -> str:
        """A token that is good for the next call, for calls that this SDK has no method for.

        Raises:
            IronError: the key could not be exchanged, and why.
        """
        return await self._tokens.get()

    def _headers(self) -> dict[str, str]:
        return {
            "user-agent": f"ironworks-python/{__version__}",
            "x-request-id": new_id("req", self.clock, self._entropy),
        }

    def _give_key(self, request: Message[Any]) -> None:
        if getattr(request, "idempotency_key", None) == "":
            key = self._entropy.token_bytes(16).hex()
            request.idempotency_key = key  # pyright: ignore[reportAttributeAccessIssue] - asked above

    async def _authenticated(self, use: Callable[[dict[str, str]], Awaitable[_Answer]]) -> _Answer:
        token = await self._tokens.get()
        try:
            return await use({"authorization": f"Bearer {token}"})
        except Unauthenticated:
            # Its life has ended by the platform's clock, or the platform has other keys now.
            self._tokens.reject(token)
        token = await self._tokens.get()
        return await use({"authorization": f"Bearer {token}"})

    async def _once(
        self,
        method: Callable[..., Awaitable[_Answer]],
        client: ConnectClient,
        request: Message[Any] | AsyncIterator[Message[Any]],
        headers: dict[str, str],
        timeout_seconds: float | None = CALL_TIMEOUT_SECONDS,
        ends_ns: int | None = None,
    ) -> _Answer:
        timeout_ms = None if timeout_seconds is None else int(timeout_seconds * 1000)
        if ends_ns is not None:
            timeout_ms = max((ends_ns - self.clock.monotonic_ns()) // NS_PER_MS, 1)
        try:
            with cancellation_kept():
                return await method(client, request, headers=headers, timeout_ms=timeout_ms)
        except ConnectError as error:
            raise self._explain(error, timeout_seconds) from None

    async def _exchange(self) -> Token:
        if not self.configuration.api_key:
            raise Unauthenticated(_NO_KEY.message, hint=_NO_KEY.hint)
        client = await self.service(TokenServiceClient)
        request = tokens_pb.ExchangeTokenRequest(api_key=self.configuration.api_key)
        answer = await self._once(
            TokenServiceClient.exchange_token, client, request, self._headers()
        )
        return Token(value=answer.token, expires_at_ns=answer.expires_at_ns)

    def _explain(
        self, error: ConnectError, timeout_seconds: float | None = CALL_TIMEOUT_SECONDS
    ) -> BaseException:
        cause = error.__cause__
        if isinstance(cause, asyncio.CancelledError):
            return cause  # see runtime.rpc.errors.our_errors
        if error.code is Code.DEADLINE_EXCEEDED and isinstance(cause, TimeoutError):
            url, seconds = self.configuration.url, timeout_seconds or 0.0
            return DeadlineExceeded(f"{url} did not answer within {seconds:g} seconds.")
        if error.code is Code.UNAVAILABLE and cause is not None:
            return unreachable(self.configuration.url, str(cause))
        return from_connect(error)


def unreachable(url: str, reason: str) -> IronError:
    """What a person should read when no answer came."""
    if "certificate" in reason.lower():
        return FailedPrecondition(
            f"The certificate of {url} is not one that this configuration trusts.",
            hint="Give the platform's CA with --ca-file or IRONWORKS_CA_FILE.",
            context={"reason": reason},
        )
    return Unavailable(
        f"{url} does not answer.",
        hint="Is the platform running (`iron up`), and is the address right?",
        context={"reason": reason},
    )
