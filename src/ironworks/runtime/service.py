"""The life of a service process: settings, identity, server, reconcilers, orderly end.

A service's `service.py` is its composition root: `compose(chassis)` is an async context manager
that builds everything, yields `Parts`, and tears down what it built. `main` does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import structlog
from connectrpc.server import ConnectASGIApplication
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP2Settings
from granian.server.embed import Server
from prometheus_client import CollectorRegistry, Counter, Gauge

from ironworks.model.errors import FailedPrecondition, InvalidRequest, IronError
from ironworks.model.units import MIB, NS_PER_SECOND
from ironworks.runtime import log
from ironworks.runtime.clock import Clock, Entropy, SystemClock, SystemEntropy
from ironworks.runtime.identity.tokens import ServiceSigner, Verifier
from ironworks.runtime.process import open_many_files
from ironworks.runtime.reconcile import Reconciler
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.rpc.handlers import mapped
from ironworks.runtime.rpc.interceptor import Around
from ironworks.runtime.rpc.server import AsgiApplication, Readiness, RpcServer
from ironworks.runtime.settings import Settings, load
from ironworks.runtime.tasks import Tasks

_log = structlog.stdlib.get_logger()
_HTTP2 = HTTP2Settings(
    # Each frame wakes the event loop once: with HTTP/2's default of 16 KiB an upload costs three
    # times the CPU. The windows bound what a connection may have in memory.
    max_frame_size=4 * MIB,
    initial_stream_window_size=8 * MIB,
    initial_connection_window_size=16 * MIB,
)
_GC_THRESHOLDS = (5_000, 20, 20)
"""Python's own are 700, 10, 10: a page of a list is some thousand objects, so that lists alone
made a full collection every 1.5 s, which stopped every call for as long as 30 ms. Nothing is
kept longer but cycles of garbage."""
MAX_CONNECTIONS = 4096
"""Open connections beyond these wait until others close. The server's own default is 128: few
enough that callers with a connection each could keep everybody else out."""
_S = TypeVar("_S", bound=Settings)
STOP_SECONDS = 8.0
"""A service that has not stopped by then is ended; nothing acknowledged depends on a clean end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chassis(Generic[_S]):
    """What a service is given."""

    name: str
    settings: _S
    clock: Clock
    entropy: Entropy
    tasks: Tasks
    clients: Clients
    verifier: Verifier
    registry: CollectorRegistry

    def application(
        self,
        kind: Callable[..., ConnectASGIApplication[Any]],
        handlers: object,
        *,
        max_message_bytes: int | None = None,
    ) -> ConnectASGIApplication[Any]:
        """The ASGI application of one RPC service; its messages are bounded."""
        return kind(
            handlers,
            interceptors=[Around(mapped)],
            read_max_bytes=max_message_bytes or self.settings.max_body_bytes,
        )


async def always_ready() -> Mapping[str, str]:
    """Readiness of a service that needs nothing but itself."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a service gives to the chassis.

    Attributes:
        applications: Its RPC services.
        reconcilers: Its loops.
        ready: Name of a need → why it is not met; an empty reason is met.
        routes: Other HTTP paths (a prefix each) that it serves; they authenticate by themselves.
        stopping: Called before the server ends, so that streams end with an answer.
    """

    applications: Sequence[ConnectASGIApplication[Any]]
    reconcilers: Sequence[Reconciler] = ()
    ready: Readiness = always_ready
    routes: Mapping[str, AsgiApplication] = field(default_factory=dict[str, AsgiApplication])
    stopping: Callable[[], None] = lambda: None


Compose = Callable[[Chassis[_S]], AbstractAsyncContextManager[Parts]]


def _check_free(host: str, port: int) -> None:
    """Refuse a port that somebody listens on.

    The server would share it (SO_REUSEPORT), and a service that an earlier life left behind would
    go on to answer every other call.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FailedPrecondition(
                f"The port {port} of {host} cannot be listened on: {error.strerror}.",
                hint="Stop what listens there, or give the service another URL.",
            ) from None


def _server(target: RpcServer, url: str) -> Server:
    address = urlsplit(url)
    if address.hostname is None or address.port is None:
        raise InvalidRequest(f"{url!r} names no host and port to listen on.")
    _check_free(address.hostname, address.port)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Server(
            target,
            address=address.hostname,
            port=address.port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto,
            websockets=False,
            log_enabled=False,
            http2_settings=_HTTP2,
            backpressure=MAX_CONNECTIONS,
        )


def _register_status(registry: CollectorRegistry, reconcilers: Sequence[Reconciler]) -> None:
    runs = Gauge(
        "ironworks_reconciler_activations", "Activations so far.", ["name"], registry=registry
    )
    seconds = Gauge(
        "ironworks_reconciler_last_seconds", "Time of the last one.", ["name"], registry=registry
    )
    failing = Gauge(
        "ironworks_reconciler_failing", "1 if the last one failed.", ["name"], registry=registry
    )
    for one in reconcilers:
        runs.labels(one.name).set_function(lambda one=one: one.status.activations)
        failing.labels(one.name).set_function(lambda one=one: float(bool(one.status.error)))
        seconds.labels(one.name).set_function(
            lambda one=one: one.status.last_duration_ns / NS_PER_SECOND
        )


async def _serve(chassis: Chassis[_S], compose: Compose[_S], stop: asyncio.Event) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(chassis.tasks)
        parts = await stack.enter_async_context(compose(chassis))
        target = RpcServer(
            applications=parts.applications,
            verifier=chassis.verifier,
            clock=chassis.clock,
            entropy=chassis.entropy,
            ready=parts.ready,
            registry=chassis.registry,
            routes=parts.routes,
        )
        _register_status(chassis.registry, parts.reconcilers)
        server = _server(target, chassis.settings.url_of(chassis.name))
        async with Tasks() as loops:
            serving = loops.start(server.serve(), name="server")
            for one in parts.reconcilers:
                loops.start(one.run(chassis.clock), name=f"reconciler {one.name}")
            stopping = loops.start(stop.wait(), name="stop")
            # Modules and what has been composed live as long as the process: a full collection
            # that walks them again stops every call for a tenth of a second, and frees nothing.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            _log.info("started", url=chassis.settings.url_of(chassis.name))
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not stop.is_set():
                await serving
                raise InvalidRequest("The server ended by itself.", hint="Is its port taken?")
            parts.stopping()
            server.stop()
            await asyncio.wait({serving}, timeout=STOP_SECONDS / 2)
    _log.info("stopped")


def make_chassis(
    name: str, settings: _S, *, clock: Clock | None = None, entropy: Entropy | None = None
) -> Chassis[_S]:
    """The chassis of service `name` with the keys of its data directory."""
    clock = clock or SystemClock()
    signer = ServiceSigner.load(settings.data_dir, name, settings.trust_domain, clock)
    return Chassis(
        name=name,
        settings=settings,
        clock=clock,
        entropy=entropy or SystemEntropy(),
        tasks=Tasks(),
        clients=Clients(settings=settings, signer=signer),
        verifier=Verifier(
            service=name,
            data_dir=settings.data_dir,
            trust_domain=settings.trust_domain,
            clock=clock,
        ),
        registry=_process_registry(name),
    )


def _process_registry(name: str) -> CollectorRegistry:
    registry = CollectorRegistry()
    started = Counter("ironworks_starts", "Starts of this process.", ["name"], registry=registry)
    started.labels(name).inc()
    return registry


async def run_service(
    chassis: Chassis[_S], compose: Compose[_S], stop: asyncio.Event | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, or until `stop` is set."""
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await _serve(chassis, compose, stop)


def main(name: str, kind: type[_S], compose: Compose[_S]) -> None:
    """Entry point of a service's `__main__`; exits with the error's status if it cannot start."""
    status = 0
    try:
        settings = load(kind)
        log.configure(name, settings.log_level)
        open_many_files()
        logging.getLogger("_granian").setLevel(logging.WARNING)
        asyncio.run(run_service(make_chassis(name, settings), compose))
    except IronError as error:
        _log.error("cannot_start", error=str(error), **log.private(error))
        sys.stderr.write(f"{name}: {error}\n")
        status = error.exit_status
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Not sys.exit: threads of the HTTP client and of ClickHouse may outlive the interpreter by a
    # moment and abort the process on its way out, when everything has been closed.
    os._exit(status)
