"""Every SQL statement of builderd: functions that take a `Connection`, each in a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, exists, func, insert, select, update

from ironworks.builderd.tables import BUILDS, IDEMPOTENCY, LABELS, LOG_LINES, PACKAGES
from ironworks.builderd.types import (
    BUILDER_VERSION,
    ENDED,
    MAX_LOG_CHARS,
    MAX_LOG_LINES,
    Build,
    BuildFilter,
    BuildState,
    LogLine,
    Package,
    Progress,
    Stats,
)
from ironworks.model.errors import Aborted
from ironworks.model.pages import PageSpec
from ironworks.storage import idempotency

_BUILD = TypeAdapter(Build)
_PROGRESS = TypeAdapter(Progress)
_PACKAGES = TypeAdapter(tuple[Package, ...])
_ENDED = [state.value for state in ENDED]
_WORKING = [state.value for state in BuildState if state not in {*ENDED, BuildState.QUEUED}]


def _columns(build: Build) -> dict[str, object]:
    return {
        "tenant_id": build.tenant_id,
        "image": build.image,
        "image_digest": build.image_digest,
        "format": build.format.value,
        "builder_version": build.builder_version,
        "state": build.state.value,
        "reused_build_id": build.reused_build_id,
        "created_at_ns": build.created_at_ns,
        "updated_at_ns": build.updated_at_ns,
        "ended_at_ns": build.ended_at_ns,
        "revision": build.revision,
        "priority": build.priority,
        "turn": build.turn,
        "policy_digest": build.policy_digest,
        "record": _BUILD.dump_json(build).decode(),
    }


def insert_build(connection: Connection, build: Build) -> None:
    """Add a build."""
    connection.execute(insert(BUILDS).values(build_id=build.build_id, **_columns(build)))
    for key, value in build.labels.items():
        connection.execute(insert(LABELS).values(build_id=build.build_id, key=key, value=value))


def change_build(connection: Connection, before: Build, after: Build, now_ns: int) -> Build:
    """Write `after` over `before`.

    Raises:
        Aborted: the record is no longer `before`.
    """
    after = replace(after, revision=before.revision + 1, updated_at_ns=now_ns)
    result = connection.execute(
        update(BUILDS)
        .where(BUILDS.c.build_id == before.build_id, BUILDS.c.revision == before.revision)
        .values(**_columns(after))
    )
    if result.rowcount != 1:
        raise Aborted(f"Build {before.build_id} has changed meanwhile; read it again.")
    return after


def read_build(connection: Connection, build_id: str) -> Build | None:
    """One build, whoever owns it."""
    text = connection.execute(
        select(BUILDS.c.record).where(BUILDS.c.build_id == build_id)
    ).scalar_one_or_none()
    return None if text is None else _BUILD.validate_json(text)


def list_builds(
    connection: Connection, tenant_id: str, query: BuildFilter, page: PageSpec
) -> list[Build]:
    """Newest first; one more than the page, if there is one more; `tenant_id` empty: all."""
    statement = select(BUILDS.c.record)
    if tenant_id:
        statement = statement.where(BUILDS.c.tenant_id == tenant_id)
    if query.states:
        statement = statement.where(BUILDS.c.state.in_([state.value for state in query.states]))
    if query.image_digest:
        statement = statement.where(BUILDS.c.image_digest == query.image_digest)
    for key, value in query.labels.items():
        statement = statement.where(
            exists().where(
                LABELS.c.build_id == BUILDS.c.build_id, LABELS.c.key == key, LABELS.c.value == value
            )
        )
    if page.after:
        statement = statement.where(BUILDS.c.build_id < str(page.after[0]))
    statement = statement.order_by(BUILDS.c.build_id.desc()).limit(page.size + 1)
    return [_BUILD.validate_json(text) for text in connection.execute(statement).scalars()]


def find_made(connection: Connection, build: Build) -> Build | None:
    """The tenant's newest build that wrote the same: see `decide.reuse_key`."""
    text = connection.execute(
        select(BUILDS.c.record)
        .where(
            BUILDS.c.tenant_id == build.tenant_id,
            BUILDS.c.image_digest == build.image_digest,
            BUILDS.c.format == build.format.value,
            BUILDS.c.builder_version == BUILDER_VERSION,
            BUILDS.c.policy_digest == build.policy_digest,
            BUILDS.c.state == BuildState.COMPLETED.value,
            BUILDS.c.reused_build_id == "",
        )
        .order_by(BUILDS.c.build_id.desc())
        .limit(1)
    ).scalar_one_or_none()
    return None if text is None else _BUILD.validate_json(text)


def write_progress(connection: Connection, build_id: str, progress: Progress) -> None:
    """Note how far a build is; its record and its revision stay as they are."""
    connection.execute(
        update(BUILDS)
        .where(BUILDS.c.build_id == build_id)
        .values(progress=_PROGRESS.dump_json(progress).decode())
    )


def read_progress(connection: Connection, build_id: str) -> Progress:
    """What was noted last."""
    text = connection.execute(
        select(BUILDS.c.progress).where(BUILDS.c.build_id == build_id)
    ).scalar_one_or_none()
    return _PROGRESS.validate_json(text) if text else Progress()


def write_packages(connection: Connection, build_id: str, packages: Sequence[Package]) -> None:
    """Keep the packages that a build found."""
    connection.execute(delete(PACKAGES).where(PACKAGES.c.build_id == build_id))
    text = _PACKAGES.dump_json(tuple(packages)).decode()
    connection.execute(insert(PACKAGES).values(build_id=build_id, packages=text))


def read_packages(connection: Connection, build_id: str) -> tuple[Package, ...]:
    """The packages that a build found; none if it found none, or has not come that far."""
    text = connection.execute(
        select(PACKAGES.c.packages).where(PACKAGES.c.build_id == build_id)
    ).scalar_one_or_none()
    return _PACKAGES.validate_json(text) if text else ()


def count_waiting(connection: Connection, tenant_id: str) -> int:
    """Builds of a tenant that wait."""
    return connection.execute(
        select(func.count())
        .select_from(BUILDS)
        .where(BUILDS.c.tenant_id == tenant_id, BUILDS.c.state == BuildState.QUEUED.value)
    ).scalar_one()


def count_running(connection: Connection, tenant_id: str) -> int:
    """Builds of a tenant that a worker has."""
    return connection.execute(
        select(func.count())
        .select_from(BUILDS)
        .where(BUILDS.c.tenant_id == tenant_id, BUILDS.c.state.in_(_WORKING))
    ).scalar_one()


def unended(connection: Connection, limit: int) -> list[Build]:
    """Builds that have not ended, oldest first."""
    statement = select(BUILDS.c.record).where(BUILDS.c.state.not_in(_ENDED))
    rows = connection.execute(statement.order_by(BUILDS.c.build_id).limit(limit))
    return [_BUILD.validate_json(text) for text in rows.scalars()]


def delete_build(connection: Connection, build_id: str) -> None:
    """Remove a build and its log."""
    for table in (LOG_LINES, LABELS, PACKAGES, BUILDS):
        connection.execute(delete(table).where(table.c.build_id == build_id))


def append_log(
    connection: Connection, build_id: str, state: BuildState, text: str, at_ns: int
) -> None:
    """Add a line; the oldest line but the first goes when there are too many."""
    last = connection.execute(
        select(func.coalesce(func.max(LOG_LINES.c.sequence), 0)).where(
            LOG_LINES.c.build_id == build_id
        )
    ).scalar_one()
    connection.execute(
        insert(LOG_LINES).values(
            build_id=build_id,
            sequence=last + 1,
            at_ns=at_ns,
            state=state.value,
            text=text[:MAX_LOG_CHARS],
        )
    )
    if last + 1 > MAX_LOG_LINES:
        connection.execute(
            delete(LOG_LINES).where(
                LOG_LINES.c.build_id == build_id, LOG_LINES.c.sequence <= last + 1 - MAX_LOG_LINES
            )
        )


def read_log(connection: Connection, build_id: str, after: int, limit: int) -> list[LogLine]:
    """Lines after a sequence number, in order."""
    rows = connection.execute(
        select(LOG_LINES)
        .where(LOG_LINES.c.build_id == build_id, LOG_LINES.c.sequence > after)
        .order_by(LOG_LINES.c.sequence)
        .limit(limit)
    )
    return [
        LogLine(sequence=row.sequence, at_ns=row.at_ns, state=BuildState(row.state), text=row.text)
        for row in rows
    ]


def last_sequence(connection: Connection, build_id: str) -> int:
    """Number of the last line; 0 if there is none."""
    return connection.execute(
        select(func.coalesce(func.max(LOG_LINES.c.sequence), 0)).where(
            LOG_LINES.c.build_id == build_id
        )
    ).scalar_one()


def stats(connection: Connection, tenant_id: str, since_ns: int, now_ns: int) -> Stats:
    """Figures about builds created since a time; `tenant_id` empty: of all tenants."""
    statement = select(BUILDS.c.record).where(
        (BUILDS.c.created_at_ns >= since_ns) | BUILDS.c.state.not_in(_ENDED)
    )
    if tenant_id:
        statement = statement.where(BUILDS.c.tenant_id == tenant_id)
    builds = [_BUILD.validate_json(text) for text in connection.execute(statement).scalars()]
    queued = [build for build in builds if build.state is BuildState.QUEUED]
    completed = [build for build in builds if build.state is BuildState.COMPLETED]
    made = [build for build in completed if not build.reused_build_id]
    durations = sorted(build.ended_at_ns - build.created_at_ns for build in completed)
    return Stats(
        queued_count=len(queued),
        running_count=sum(build.state.value in _WORKING for build in builds),
        oldest_queued_age_ns=max((now_ns - build.created_at_ns for build in queued), default=0),
        completed_count=len(made),
        reused_count=len(completed) - len(made),
        failed_count=sum(build.state is BuildState.FAILED for build in builds),
        cancelled_count=sum(build.state is BuildState.CANCELLED for build in builds),
        median_duration_ns=durations[len(durations) // 2] if durations else 0,
        p95_duration_ns=durations[len(durations) * 95 // 100] if durations else 0,
        written_bytes=sum(build.result.size_bytes for build in made if build.result),
    )


def claim(
    connection: Connection, *, scope: str, key: str, request: bytes, resource_id: str, now_ns: int
) -> str:
    """See `storage.idempotency.claim`."""
    return idempotency.claim(
        connection,
        IDEMPOTENCY,
        scope=scope,
        key=key,
        request=request,
        resource_id=resource_id,
        now_ns=now_ns,
    )


def forget_keys(connection: Connection, now_ns: int) -> int:
    """Drop old idempotency keys."""
    return idempotency.forget(connection, IDEMPOTENCY, now_ns)
