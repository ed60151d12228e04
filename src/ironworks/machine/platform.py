"""`iron up`: one supervisor with six services and Envoy over one data directory."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from ironworks.machine import ports, preflight
from ironworks.model.errors import FailedPrecondition, NotFound
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.identity import SERVICES, ensure_service_keys
from ironworks.runtime.rpc.readiness import Readiness
from ironworks.runtime.settings import Settings
from ironworks.runtime.supervise import Child, Supervisor

START_ORDER = ("assetmanagerd", "gatewayd", "aggregatord", "billaged", "builderd", "metald")
ENVOY = "envoy"
PORTS_FILE = "ports.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFile:
    """`<data_dir>/run/platform.json`: how to reach the platform that runs over this directory.

    Attributes:
        pid: Of the supervisor.
        data_dir: The directory.
        api_url: The public API.
        ca_file: CA of the API's certificate.
        edge_port: HTTPS port of the API and of deployments' endpoints.
        services: Base URL of each service.
        pids: Pid of each child when the platform became ready.
    """

    pid: int
    data_dir: str
    api_url: str
    ca_file: str
    edge_port: int
    services: Mapping[str, str]
    pids: Mapping[str, int]


def platform_file_path(data_dir: Path) -> Path:
    """Where the file is."""
    return data_dir / "run" / "platform.json"


def read_platform_file(data_dir: Path) -> PlatformFile:
    """The running platform of this directory.

    Raises:
        NotFound: none runs.
    """
    try:
        content: object = json.loads(platform_file_path(data_dir).read_bytes())
        return PlatformFile(**cast("dict[str, object]", content))  # pyright: ignore[reportArgumentType] - we wrote it
    except (OSError, ValueError, TypeError):
        raise NotFound(
            f"No platform runs over {data_dir}.", hint="Start it with `iron up`."
        ) from None


class AlreadyRuns(FailedPrecondition):
    """Another `iron up` holds the data directory."""

    exit_status = 83


@contextmanager
def data_dir_lock(data_dir: Path) -> Generator[None]:
    """Hold the data directory; the kernel lets go of it when we die, however we die.

    Raises:
        AlreadyRuns: another `iron up` holds it.
    """
    path = data_dir / "run" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRuns(
                f"A platform already runs over {data_dir}.",
                hint="Use it, stop it with `iron down`, or give another --data-dir.",
            ) from None
        yield


def wanted_ports(settings: Settings) -> dict[str, int]:
    """Ports that the operator set, in the file or the environment."""
    wanted = {
        service: urlsplit(settings.url_of(service)).port or 80
        for service in SERVICES
        if f"{service}_url" in settings.model_fields_set
    }
    if "edge_port" in settings.model_fields_set:
        wanted["edge"] = settings.edge_port
    return wanted


def ports_before(data_dir: Path) -> dict[str, int]:
    """Ports of the run before; none where there was none, or the file is damaged."""
    try:
        content: object = json.loads((data_dir / "run" / PORTS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    read = cast("dict[str, object]", content)
    return {name: port for name, port in read.items() if isinstance(port, int)}


def _remember_ports(data_dir: Path, chosen: Mapping[str, int]) -> None:
    beside = data_dir / "run" / f".{PORTS_FILE}"
    beside.write_text(json.dumps(chosen))
    beside.replace(data_dir / "run" / PORTS_FILE)


def environment(settings: Settings, chosen: Mapping[str, int]) -> dict[str, str]:
    """What the services are told."""
    urls = {
        f"IRONWORKS_{service.upper()}_URL": f"http://{settings.listen_host}:{chosen[service]}"
        for service in SERVICES
    }
    return {
        "IRONWORKS_DATA_DIR": str(settings.data_dir),
        "IRONWORKS_GUEST_DIR": str(settings.guest_dir),
        "IRONWORKS_EDGE_PORT": str(chosen["edge"]),
        # Each thread's own malloc arena costs memory that is never given back.
        "MALLOC_ARENA_MAX": "2",
        **urls,
    }


def children(env: Mapping[str, str]) -> list[Child]:
    """The processes of the platform, in order of their start."""
    readiness = Readiness()
    bootstrap = Path(env["IRONWORKS_DATA_DIR"]) / "gatewayd" / "envoy" / "bootstrap.json"
    # What an earlier run left may name its ports: gatewayd writes it anew, and Envoy waits for it.
    bootstrap.unlink(missing_ok=True)
    envoy = Child(
        name=ENVOY,
        argv=(sys.executable, "-m", "ironworks.gatewayd.envoy"),
        env=env,
        needs_file=bootstrap,
    )
    return [
        *(
            Child(
                name=service,
                argv=(sys.executable, "-m", f"ironworks.{service}"),
                env=env,
                ready=partial(readiness.of, env[f"IRONWORKS_{service.upper()}_URL"]),
            )
            for service in START_ORDER
        ),
        envoy,
    ]


async def run(settings: Settings, *, on_ready: Callable[[PlatformFile], None]) -> None:
    """Run the platform until SIGTERM or SIGINT.

    Raises:
        IronError: it cannot start; nothing runs then.
    """
    preflight.check_all(settings.data_dir, settings.guest_dir)
    with data_dir_lock(settings.data_dir), ports.Reservations() as reservations:
        wanted = wanted_ports(settings)
        chosen = ports.choose(
            settings.listen_host,
            wanted,
            take=reservations.take,
            before=ports_before(settings.data_dir),
        )
        _remember_ports(settings.data_dir, chosen)
        ensure_service_keys(settings.data_dir)
        env = environment(settings, chosen)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        supervisor = Supervisor(
            children(env), log_dir=settings.data_dir / "log", clock=SystemClock()
        )
        path = platform_file_path(settings.data_dir)

        def ready() -> None:
            described = PlatformFile(
                pid=os.getpid(),
                data_dir=str(settings.data_dir),
                api_url=f"https://{settings.listen_host}:{chosen['edge']}",
                ca_file=str(settings.data_dir / "tls" / "ca.pem"),
                edge_port=chosen["edge"],
                services={s: env[f"IRONWORKS_{s.upper()}_URL"] for s in SERVICES},
                pids=supervisor.pids,
            )
            beside = path.with_suffix(".new")
            beside.write_text(json.dumps(asdict(described)) + "\n")
            beside.replace(path)
            on_ready(described)

        path.unlink(missing_ok=True)
        try:
            await supervisor.run(stop, ready)
        finally:
            path.unlink(missing_ok=True)
