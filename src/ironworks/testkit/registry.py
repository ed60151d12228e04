"""A real image registry (Debian's `docker-registry`) on a free port of loopback."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from ironworks.runtime.process import run
from ironworks.testkit.gatewayd import free_port

INSTALLED = shutil.which("docker-registry") is not None
USER, PASSWORD = "bot", "s3cret"
START_SECONDS = 30
_CONFIGURATION = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_AUTHENTICATION = "auth: {{htpasswd: {{realm: test, path: {path}}}}}\n"


@asynccontextmanager
async def docker_registry(directory: Path, *, private: bool = False) -> AsyncGenerator[str]:
    """Run one on a new directory; yields `127.0.0.1:PORT`. A private one knows USER alone."""
    directory.mkdir()
    port = free_port()
    configuration = _CONFIGURATION.format(root=directory / "data", port=port)
    if private:
        (directory / "htpasswd").write_text(await _hashed())
        configuration += _AUTHENTICATION.format(path=directory / "htpasswd")
    (directory / "registry.yml").write_text(configuration)
    process = await asyncio.create_subprocess_exec(
        *("docker-registry", "serve", str(directory / "registry.yml")),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def _hashed() -> str:
    salt = "$2b$05$abcdefghijklmnopqrstuu"
    script = f'print "{USER}:", crypt("{PASSWORD}", q({salt})), "\\n"'
    done = await run(["perl", "-e", script], timeout_seconds=30)
    return done.stdout.decode()
