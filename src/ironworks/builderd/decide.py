"""Decisions about builds: pure functions of (record, request, now)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ironworks.builderd.types import (
    BUILDER_VERSION,
    ENDED,
    MAX_IMAGE_CHARS,
    MAX_LABELS,
    MAX_TEXT_CHARS,
    Build,
    BuildState,
    Failure,
    ImageReference,
    Stage,
    Transport,
)
from ironworks.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    IronError,
    ResourceExhausted,
)
from ironworks.model.units import NS_PER_SECOND

_S = BuildState
NEXT: Mapping[BuildState, frozenset[BuildState]] = MappingProxyType(
    {
        _S.QUEUED: frozenset({_S.RESOLVING, _S.FAILED, _S.CANCELLED}),
        _S.RESOLVING: frozenset({_S.RESOLVING, _S.PULLING, _S.COMPLETED, _S.FAILED, _S.CANCELLED}),
        _S.PULLING: frozenset({_S.RESOLVING, _S.BUILDING, _S.FAILED, _S.CANCELLED}),
        _S.BUILDING: frozenset({_S.RESOLVING, _S.VALIDATING, _S.FAILED, _S.CANCELLED}),
        _S.VALIDATING: frozenset({_S.RESOLVING, _S.REGISTERING, _S.FAILED, _S.CANCELLED}),
        _S.REGISTERING: frozenset({_S.RESOLVING, _S.COMPLETED, _S.FAILED, _S.CANCELLED}),
        _S.COMPLETED: frozenset(),
        _S.FAILED: frozenset(),
        _S.CANCELLED: frozenset(),
    }
)
"""What may follow what; a build whose worker died goes back to RESOLVING."""

_REGISTRY = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?/)?[a-z0-9][a-z0-9._/-]{0,254}"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_IMAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/:@+-]{0,254}")
_UPLOAD = re.compile(r"upl_[0-9a-z]{26}")
_SCHEME = re.compile(r"(docker|oci|oci-archive|docker-archive|upload|dir|containers-storage):")
_KNOWN = "a registry reference, oci:/directory, oci-archive:/file, docker-archive:/file or a path"


def parse_image(text: str) -> ImageReference:
    """A reference, taken apart.

    Raises:
        InvalidRequest: it cannot be one.
    """
    if not 1 <= len(text) <= MAX_IMAGE_CHARS or not text.isprintable():
        raise InvalidRequest(f"image must be 1 to {MAX_IMAGE_CHARS} printable characters.")
    if text.startswith("/"):
        return ImageReference(transport=Transport.PATH, location=_path(text))
    scheme = _SCHEME.match(text)
    kind = scheme[1] if scheme else ""
    rest = text[scheme.end() :] if scheme else text
    if kind == "upload":
        upload, colon, name = rest.partition(":")
        if not _UPLOAD.fullmatch(upload) or (colon and not _IMAGE_NAME.fullmatch(name)):
            raise InvalidRequest(f"{text[:80]!r} is not what an upload answers.")
        return ImageReference(transport=Transport.UPLOAD, location=upload, name=name)
    if kind in ("oci", "oci-archive", "docker-archive"):
        path, colon, name = rest.partition(":")
        if colon and not _IMAGE_NAME.fullmatch(name):
            raise InvalidRequest(f"{name!r} cannot be the name of an image in a layout.")
        return ImageReference(transport=Transport(kind), location=_path(path), name=name)
    if kind not in ("", "docker"):
        raise InvalidRequest(f"Images are not taken from {kind}:", hint=f"Give {_KNOWN}.")
    return _registry_reference(text)


def _registry_reference(text: str) -> ImageReference:
    # `docker:27` is the image "docker" of the default registry.
    rest = text.removeprefix("docker://")
    if not _REGISTRY.fullmatch(rest) or "//" in rest or ".." in rest:
        raise InvalidRequest(f"{text[:80]!r} is not an image reference.", hint=f"Give {_KNOWN}.")
    return ImageReference(transport=Transport.REGISTRY, location=rest)


def with_registry(reference: ImageReference, default_registry: str) -> ImageReference:
    """The same image, with the registry that a short name means."""
    if reference.transport is not Transport.REGISTRY:
        return reference
    location = reference.location
    first, slash, _ = location.partition("/")
    if not (slash and ("." in first or ":" in first or first == "localhost")):
        location = f"{default_registry}/{location}"
    registry, _, rest = location.partition("/")
    if registry == "docker.io" and "/" not in rest:
        location = f"docker.io/library/{rest}"
    return replace(reference, location=location)


def _path(text: str) -> str:
    parts = text.split("/")
    if not text.startswith("/") or ".." in parts:
        raise InvalidRequest(
            f"{text!r} is not an absolute path without `..`.",
            hint="Give the whole path on the platform's machine.",
        )
    return "/" + "/".join(part for part in parts if part not in ("", "."))


def check_request(labels: Mapping[str, str], timeout_seconds: int, max_timeout_seconds: int) -> int:
    """The time that a build may take.

    Raises:
        InvalidRequest: labels or time are out of bounds.
    """
    if len(labels) > MAX_LABELS or any(
        not key or max(len(key), len(value)) > MAX_TEXT_CHARS for key, value in labels.items()
    ):
        raise InvalidRequest(
            f"At most {MAX_LABELS} labels, of 1 to {MAX_TEXT_CHARS} characters each."
        )
    if not 0 <= timeout_seconds <= max_timeout_seconds:
        raise InvalidRequest(f"timeout_seconds must be 0 to {max_timeout_seconds}.")
    return timeout_seconds or max_timeout_seconds


def check_queue(waiting: int, limit: int) -> None:
    """Refuse one more waiting build.

    Raises:
        ResourceExhausted: the tenant has too many.
    """
    if waiting >= limit:
        raise ResourceExhausted(
            f"{waiting} builds of this tenant are waiting already.",
            hint="Wait until some have ended, or cancel some.",
        )


def move(build: Build, state: BuildState, now_ns: int) -> Build:
    """`build` in its next state, with the time of the one before closed.

    Raises:
        FailedPrecondition: this may not follow.
    """
    if state not in NEXT[build.state]:
        raise FailedPrecondition(
            f"Build {build.build_id} is {build.state.value} and cannot become {state.value}."
        )
    closed = tuple(
        replace(stage, ended_at_ns=stage.ended_at_ns or now_ns) for stage in build.stages
    )
    if state in ENDED:
        return replace(build, state=state, stages=closed, ended_at_ns=now_ns)
    return replace(build, state=state, stages=(*closed, Stage(state=state, started_at_ns=now_ns)))


def take_up(build: Build, worker: str, now_ns: int, turn: str = "") -> Build:
    """`build` in the hands of a worker, from its beginning."""
    return replace(
        move(build, BuildState.RESOLVING, now_ns),
        worker=worker,
        turn=turn,
        attempt_count=build.attempt_count + 1,
        started_at_ns=build.started_at_ns or now_ns,
    )


def fail(build: Build, error: IronError, now_ns: int) -> Build:
    """`build` failed, with the reason as its owner may read it."""
    failure = Failure(code=error.code, message=str(error), state=build.state)
    return replace(move(build, BuildState.FAILED, now_ns), failure=failure)


def check_cancellable(build: Build) -> None:
    """Refuse to cancel what has ended.

    Raises:
        FailedPrecondition: it has completed or failed.
    """
    if build.state in (BuildState.COMPLETED, BuildState.FAILED):
        raise FailedPrecondition(f"Build {build.build_id} has {build.state.value} already.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The next build of one tenant: the one of the highest priority, and of those the oldest.

    Attributes:
        running: Builds of this tenant that workers have.
        served_at_ns: When a worker last took up one of its builds; 0: never.
    """

    build_id: str
    tenant_id: str
    running: int
    served_at_ns: int


def choose(waiting: Iterable[Waiting], max_per_tenant: int) -> Waiting | None:
    """Whose turn it is: the tenant's with the fewest running builds, then who has waited longest.

    None if no tenant may have one more.
    """
    allowed = [one for one in waiting if one.running < max_per_tenant]
    return min(allowed, key=lambda one: (one.running, one.served_at_ns, one.build_id), default=None)


def reuse_key(build: Build) -> str:
    """What two builds must share for one result to serve both."""
    parts = (
        build.tenant_id,
        build.image_digest,
        build.format.value,
        BUILDER_VERSION,
        build.policy_digest,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def seconds_left(build: Build, now_ns: int) -> float:
    """How long a build may still take, counted from its first start."""
    return build.timeout_seconds - (now_ns - build.started_at_ns) / NS_PER_SECOND
