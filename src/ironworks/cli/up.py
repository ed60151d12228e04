"""`iron up` and `iron down`: the platform on this machine."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from pathlib import Path

from ironworks.machine import platform
from ironworks.model.errors import DeadlineExceeded
from ironworks.runtime import log
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import DEFAULT_DATA_DIR, Settings, load

DOWN_SECONDS = 30
_POLL_SECONDS = 0.1


def settings_of(data_dir: Path | None) -> Settings:
    """Settings for a data directory; the argument wins over the environment."""
    if data_dir is not None:
        os.environ["IRONWORKS_DATA_DIR"] = str(data_dir.resolve())
    return load(Settings)


def up(*, data_dir: Path | None = None) -> None:
    """Run the platform on this machine until Ctrl-C or `iron down`.

    Args:
        data_dir: All state; default /var/lib/ironworks.
    """
    settings = settings_of(data_dir)
    log.configure("supervisor", settings.log_level)
    say = sys.stdout.write

    def ready(described: platform.PlatformFile) -> None:
        say(f"Ironworks is ready at {described.api_url} (state in {described.data_dir}).\n")
        say("Stop it with Ctrl-C or `iron down`; VMs go on and are found again.\n")
        sys.stdout.flush()

    say(f"Starting Ironworks over {settings.data_dir} …\n")
    sys.stdout.flush()
    asyncio.run(platform.run(settings, on_ready=ready))


def down(*, data_dir: Path | None = None) -> None:
    """Stop the platform on this machine; its VMs go on.

    Args:
        data_dir: Of the platform to stop; default /var/lib/ironworks.
    """
    directory = data_dir or Path(os.environ.get("IRONWORKS_DATA_DIR", DEFAULT_DATA_DIR))
    described = platform.read_platform_file(directory)
    os.kill(described.pid, signal.SIGTERM)
    asyncio.run(_wait_unlocked(directory))
    sys.stdout.write("Ironworks has stopped.\n")


async def _wait_unlocked(data_dir: Path) -> None:
    """Return when no supervisor holds the data directory."""
    clock = SystemClock()
    for _ in range(int(DOWN_SECONDS / _POLL_SECONDS)):
        with (data_dir / "run" / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await clock.sleep(_POLL_SECONDS)
            else:
                return
    raise DeadlineExceeded(
        f"The platform over {data_dir} did not stop within {DOWN_SECONDS} seconds.",
        hint="Look at log/ in the data directory.",
    )
