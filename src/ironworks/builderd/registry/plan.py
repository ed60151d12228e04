"""What the fetching process is told, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an image may be; the password goes to this registry and to nobody else.

    Attributes:
        registry: Name, and port if it is not TLS's own.
        repository: In it.
    """

    registry: str
    repository: str
    username: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One blob that a manifest names; `digest` is `sha256:…`."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPlan:
    """What to ask for.

    Attributes:
        image: As people know it.
        places: Mirrors first, the registry itself last.
        reference: Tag or digest of the manifest.
        architecture: Which image of an index is meant.
        blobs: To fetch; none: only manifests are asked for.
        kept: Registry → digests of blobs that are here already, of which only the right to have
            them is to be proved.
        insecure: Registries that are spoken to without TLS.
        private: Registries that may be at addresses which are not public.
        partial: Directory in which a registry's directory has what has come so far.
        stall_seconds: Within this time a registry must send something to speak of.
    """

    image: str
    places: tuple[Place, ...]
    reference: str
    architecture: str
    blobs: tuple[Blob, ...] = ()
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    insecure: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    partial: str = "/partial"
    stall_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What a registry answered.

    Attributes:
        registry: Which of the places it was.
        documents: The manifest; or an index and the manifest that was chosen from it. As they came:
            nothing in them has been checked.
        files: Digest of a blob → its file in the registry's directory.
    """

    registry: str
    documents: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict[str, str])


def directory_of(registry: str) -> str:
    """Name of a registry's directory, which no other registry's name gives."""
    return registry.replace(":", "+")


def encode(value: FetchPlan | Fetched) -> str:
    """As JSON, for the pipe between builderd and the process in the sandbox."""
    return json.dumps(asdict(value))


def read_plan(text: str) -> FetchPlan:
    """What `encode` wrote of a plan."""
    raw: dict[str, Any] = json.loads(text)
    raw["places"] = tuple(Place(**one) for one in raw["places"])
    raw["blobs"] = tuple(Blob(**one) for one in raw["blobs"])
    return FetchPlan(**raw)


def read_fetched(raw: dict[str, Any]) -> Fetched:
    """What `encode` wrote of an answer, already taken out of its JSON."""
    return Fetched(
        registry=raw["registry"], documents=tuple(raw["documents"]), files=dict(raw["files"])
    )
