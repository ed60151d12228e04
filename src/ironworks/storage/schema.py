"""Bring a service's schema up to date when it starts.

Alembic and what it imports cost 15 MB of memory for as long as a process lives, and most starts
find the schema current. So the question is asked in plain SQL, and the answer "not current" is
acted on in a short-lived process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources

from sqlalchemy import Engine, inspect, text

from ironworks.model.errors import FailedPrecondition, Internal
from ironworks.storage.sql import mapped

URL_VARIABLE = "IRONWORKS_MIGRATE_URL"
"""How the process gets the URL: its password must not stand in a list of processes."""

_TIMEOUT_SECONDS = 600
_VERSION_TABLE = "alembic_version"


def newest_revision(package: str) -> str:
    """Revision of the newest migration: the number that its file begins with."""
    files = (entry.name for entry in resources.files(f"{package}.versions").iterdir())
    return max(name.partition("_")[0] for name in files if name[:4].isdigit())


def current_revision(engine: Engine) -> str | None:
    """Revision of the database; None if it is empty."""
    with engine.connect() as connection:
        if not inspect(connection).has_table(_VERSION_TABLE):
            return None
        return connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar()  # noqa: S608 - our constant


def ensure_current(engine: Engine, package: str) -> None:
    """Return once the database has every migration of `package`.

    Args:
        engine: The service's database.
        package: For example `ironworks.metald.migrations`.

    Raises:
        FailedPrecondition: the database was made by a newer Ironworks, or its disk is full.
        DataLoss: the database is damaged.
        Unavailable: the database is not reachable.
        Internal: a migration failed; nothing was changed. The context has what it said.
    """
    if mapped(lambda: current_revision(engine)) == newest_revision(package):
        return
    url = engine.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-m", "ironworks.storage.migrate", package],
        env={**os.environ, URL_VARIABLE: url},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode == FailedPrecondition.exit_status:
        raise FailedPrecondition(done.stderr.strip())
    if done.returncode != 0:
        raise Internal(
            f"The database of {package.split('.')[1]} could not be brought up to date.",
            hint="Nothing was changed. The log says why.",
            context={"stderr": done.stderr[-4000:]},
        )
