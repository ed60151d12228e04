"""Some of the services as processes of their own over one data directory, without a supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ironworks.model.errors import FailedPrecondition
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.identity import ServiceSigner, ensure_service_keys
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.rpc.readiness import Readiness
from ironworks.runtime.settings import Settings
from ironworks.testkit.gatewayd import free_port

START_SECONDS = 120.0
STOP_SECONDS = 30.0
_POLL_SECONDS = 0.05


@dataclass(slots=True)
class Services:
    """Services that can be started, killed and started again, and the clients of their callers."""

    settings: Settings
    env: Mapping[str, str]
    processes: dict[str, asyncio.subprocess.Process] = field(
        default_factory=dict[str, asyncio.subprocess.Process]
    )

    def clients(self, service: str) -> Clients:
        """Clients that call as `service`."""
        signer = ServiceSigner.load(
            self.settings.data_dir, service, self.settings.trust_domain, SystemClock()
        )
        return Clients(settings=self.settings, signer=signer)

    async def start(self, service: str) -> None:
        """Start one and wait until it is ready.

        Raises:
            FailedPrecondition: it ended; its log is `<data_dir>/<service>.log`.
        """
        with (self.settings.data_dir / f"{service}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"ironworks.{service}"),
                env={**os.environ, **self.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes[service] = process
        readiness, url = Readiness(), self.settings.url_of(service)
        async with asyncio.timeout(START_SECONDS):
            while process.returncode is None:
                if await readiness.of(url):
                    return
                await asyncio.sleep(_POLL_SECONDS)
        raise FailedPrecondition(f"{service} ended with status {process.returncode}.")

    async def end(self, service: str, number: signal.Signals) -> int:
        """Send a signal and wait for the end; answers the exit status."""
        process = self.processes.pop(service)
        process.send_signal(number)
        async with asyncio.timeout(STOP_SECONDS):
            return await process.wait()


@asynccontextmanager
async def running(
    data_dir: Path, names: Sequence[str], env: Mapping[str, str] | None = None
) -> AsyncGenerator[Services]:
    """`names` on free ports of loopback, started in this order; killed at the end."""
    ensure_service_keys(data_dir)
    urls = {f"{name}_url": f"http://127.0.0.1:{free_port()}" for name in names}
    services = Services(
        settings=Settings.model_validate({"data_dir": data_dir, **urls}),
        env={
            "IRONWORKS_DATA_DIR": str(data_dir),
            **{
                f"IRONWORKS_{name.upper()}".removesuffix("_URL") + "_URL": url
                for name, url in urls.items()
            },
            **(env or {}),
        },
    )
    try:
        for name in names:
            await services.start(name)
        yield services
    finally:
        for name in list(services.processes):
            await services.end(name, signal.SIGKILL)
