"""Migrations: Alembic versions beside each service's store; `schema` applies them at its start.

A service has `migrations/versions/NNNN_what.py` (Alembic revisions `NNNN`). Here is the one
environment for all of them; there is no alembic.ini to keep.
"""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData

from ironworks.model.errors import DataLoss, FailedPrecondition, IronError
from ironworks.storage.schema import URL_VARIABLE
from ironworks.storage.sql import make_engine

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["Operations", "difference", "upgrade"]

_LOCK = 0x49524F4E  # "IRON": PostgreSQL's advisory locks are numbers, one space for each database


def _scripts(package: str) -> ScriptDirectory:
    directory = Path(str(resources.files(package)))
    return ScriptDirectory(str(directory), version_locations=[str(directory / "versions")])


def upgrade(engine: Engine, package: str, to: str = "head") -> None:
    """Bring the schema to revision `to`; a fresh database gets all of it.

    Args:
        engine: The service's database.
        package: For example `ironworks.metald.migrations`.
        to: A revision; `head` is the newest.

    Raises:
        FailedPrecondition: the database was made by a newer Ironworks.
        DataLoss: the migration broke references; nothing was changed.
    """
    scripts = _scripts(package)
    service = package.split(".")[1]
    # Without foreign keys: SQLite rebuilds a table to change it, and deletes what refers to it.
    with engine.execution_options(iw_write=True, iw_migrate=True).begin() as connection:
        _alone(connection)
        current = MigrationContext.configure(connection).get_current_revision()
        known = {script.revision for script in scripts.walk_revisions()}
        if current is not None and current not in known:
            raise FailedPrecondition(
                f"The data of {service} was written by a newer Ironworks.",
                hint="Start that version, or restore a backup that this one made.",
            )

        def steps(revision: str, _context: object) -> object:
            # What alembic's own `command.upgrade` calls; there is no public way past alembic.ini.
            return scripts._upgrade_revs(to, revision)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

        environment = EnvironmentContext(_config(), scripts, fn=steps)
        with environment:
            environment.configure(connection=connection, fn=steps, render_as_batch=True)
            environment.run_migrations()
        _check_references(connection, service)


def _alone(connection: Connection) -> None:
    """Wait until no other process migrates this database; SQLite has one writer anyhow."""
    if connection.dialect.name != "postgresql":
        return
    # Whoever starts second waits for as long as the first one needs.
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


def _check_references(connection: Connection, service: str) -> None:
    if connection.dialect.name != "sqlite":
        return
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise DataLoss(
            f"A migration of {service} would leave rows that refer to none.",
            hint="Nothing was changed. Go back to the version before, and report this.",
            context={"rows": [tuple(row) for row in broken[:20]], "count": len(broken)},
        )


def _config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - pulls in argument parsing

    return Config()


def difference(engine: Engine, metadata: MetaData) -> list[object]:
    """What a migrated database lacks or has too much, compared with the tables in the code."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def main() -> None:
    """`python -m ironworks.storage.migrate PACKAGE`, with the URL in the environment."""
    engine = make_engine(os.environ[URL_VARIABLE])
    try:
        upgrade(engine, sys.argv[1])
    except IronError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_status)
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
