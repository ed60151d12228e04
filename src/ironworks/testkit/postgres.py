"""A real PostgreSQL for tests: Debian's package, a directory and a socket of its own.

It refuses to run as root, so it runs as `postgres`, Debian's user for it; as anybody else the tests
run it as themselves. It is never flushed to disk: what a test proves about durability, it proves
about our commits, not about this machine's disk.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

USER = "postgres"
_START_TRIES = 600
_TRY_SECONDS = 0.05
_STOP_SECONDS = 30
_OPTIONS = (
    "listen_addresses=",
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=16MB",
    "max_connections=200",
    "jit=off",
)


class NoPostgres(Exception):
    """There is none on this machine; the text says what to install."""


def binaries() -> Path:
    """Where Debian keeps `initdb` and `postgres`.

    Raises:
        NoPostgres: the package is not installed.
    """
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not versions:
        raise NoPostgres("PostgreSQL is not installed: apt-get install postgresql.")
    return versions[-1].parent


@dataclass(kw_only=True)
class Postgres:
    """A running server; its databases come and go with the tests."""

    socket_dir: Path
    _numbers: count[int] = field(default_factory=count)

    def url(self, name: str) -> str:
        """URL of a database, as a setting of a service has it."""
        return f"postgresql://{USER}@/{name}?host={self.socket_dir}"

    def create(self, template: str = "template1") -> str:
        """Name of a new database; with what `template` has, to which nobody may be connected."""
        name = f"iw_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextmanager
    def database(self, template: str = "template1") -> Generator[str]:
        """The URL of a database that is there for the block."""
        name = self.create(template)
        try:
            yield self.url(name)
        finally:
            self.drop(name)

    def _execute(self, statement: str) -> None:
        with closing(psycopg.connect(self.url("postgres"), autocommit=True)) as connection:
            connection.execute(statement.encode())


def _unprivileged() -> tuple[list[str], int]:
    """What to put before a command so that it does not run as root, and the user id it gets."""
    own = ["setpriv", "--pdeathsig", "QUIT"]
    if os.geteuid() != 0:
        return own, os.geteuid()
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        raise NoPostgres(f"There is no user {USER}: apt-get install postgresql.") from None
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*own, *ids], user.pw_uid


@contextmanager
def postgres() -> Generator[Postgres]:
    """A server for the block; it ends with this process, whatever happens to that.

    Raises:
        NoPostgres: it is not installed.
        RuntimeError: it does not start; says what it said.
    """
    programs = binaries()
    before, uid = _unprivileged()
    # Not below pytest's directory, which only its owner may enter.
    directory = Path(tempfile.mkdtemp(prefix="iw-postgres-"))
    os.chown(directory, uid, -1)
    data, log = directory / "data", directory / "log"
    try:
        _initialise([*before, "--", str(programs / "initdb")], data)
        options = [word for one in _OPTIONS for word in ("-c", one)]
        argv = [*before, "--", str(programs / "postgres"), "-D", str(data), *options]
        with log.open("wb") as output:
            server = subprocess.Popen(
                [*argv, "-c", f"unix_socket_directories={directory}"],
                cwd="/",
                stdout=output,
                stderr=output,
            )
        try:
            made = Postgres(socket_dir=directory)
            _wait(made, server, log)
            yield made
        finally:
            # Fast: it does not wait for those who forgot to close their connections.
            server.send_signal(signal.SIGINT)
            try:
                server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _initialise(initdb: list[str], data: Path) -> None:
    done = subprocess.run(
        [*initdb, "-D", str(data), "-U", USER, "--auth=trust", "--no-sync", "--locale=C", "-EUTF8"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr}")


def _wait(made: Postgres, server: subprocess.Popen[bytes], log: Path) -> None:
    pause = threading.Event()
    for _ in range(_START_TRIES):
        try:
            psycopg.connect(made.url("postgres")).close()
        except psycopg.OperationalError:
            if server.poll() is not None:
                break
            pause.wait(_TRY_SECONDS)
        else:
            return
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-4000:]}")
