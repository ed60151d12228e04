"""A real S3 for tests: SeaweedFS, from its wheel, on loopback, in a directory of its own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ironworks.storage.objects import Bucket

ACCESS_KEY_ID = "ironworks"
SECRET_ACCESS_KEY = "a secret of the tests"  # noqa: S105
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
_START_TRIES = 600
_TRY_SECONDS = 0.05
_STOP_SECONDS = 20
_NUMBERS = count(1)


class NoSeaweed(Exception):
    """It did not start; the text has what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seaweed:
    """A running server; buckets come into being when they are written to."""

    endpoint: str

    def bucket(self, name: str = "", endpoint: str = "", timeout_seconds: float = 10.0) -> Bucket:
        """A bucket that no other test has, at another endpoint if there is one in between."""
        return Bucket(
            name=name or f"assets-{next(_NUMBERS)}",
            endpoint=endpoint or self.endpoint,
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET_ACCESS_KEY,
            timeout_seconds=timeout_seconds,
        )


def bucket_env(bucket: Bucket) -> dict[str, str]:
    """Settings of an assetmanagerd that keeps its bytes there."""
    return {
        "IRONWORKS_ASSET_BUCKET": bucket.name,
        "IRONWORKS_ASSET_BUCKET_ENDPOINT": bucket.endpoint,
        "IRONWORKS_ASSET_BUCKET_ACCESS_KEY_ID": bucket.access_key_id,
        "IRONWORKS_ASSET_BUCKET_SECRET_KEY": bucket.secret_access_key,
    }


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(number)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _argv(directory: Path, ports: list[int]) -> list[str]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}],
        "actions": ["Admin"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    named = zip([name for one in _PORTS for name in (one, f"{one}.grpc")], ports, strict=True)
    return [
        *("setpriv", "--pdeathsig", "KILL", str(Path(sys.executable).parent / "weed")),
        *("server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-filer", "-s3", f"-s3.config={directory / 's3.json'}", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        # Each bucket makes seven volumes, which take no room; 0 would mean as many as would fit in
        # the free disk if they were full.
        *("-master.volumeSizeLimitMB=256", "-volume.max=5000", "-volume.minFreeSpace=1MiB"),
        *(f"-{name}={port}" for name, port in named),
    ]


@contextmanager
def seaweed() -> Generator[Seaweed]:
    """Start one, and stop it.

    Raises:
        NoSeaweed: it did not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="iw-seaweed-"))
    ports = free_ports(2 * len(_PORTS))
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _argv(directory, ports), stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        waiting = threading.Event()
        for _ in range(_START_TRIES):
            if process.poll() is not None or _answers(ports[-2]):
                break
            waiting.wait(_TRY_SECONDS)
        if process.poll() is not None or not _answers(ports[-2]):
            raise NoSeaweed(log.read_text(errors="replace")[-2000:])
        yield Seaweed(endpoint=f"http://127.0.0.1:{ports[-2]}")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(_STOP_SECONDS)
        shutil.rmtree(directory, ignore_errors=True)
