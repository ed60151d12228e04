"""What the flattening process is told, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

GIB = 1 << 30
MIB = 1 << 20
MAX_FINDING_PATHS = 100
MAX_PACKAGES = 10_000


class Rule(StrEnum):
    """What in a tree a policy can object to; named as the policy's fields."""

    SETUID_FILES = "setuid_files"
    FILE_CAPABILITIES = "file_capabilities"
    DEVICE_NODES = "device_nodes"
    WORLD_WRITABLE_DIRECTORIES = "world_writable_directories"
    PRIVATE_KEYS = "private_keys"


class Action(StrEnum):
    """What is done about it."""

    ALLOW = "allow"
    STRIP = "strip"
    """Setuid and capabilities are taken off, a sticky bit is added, nodes and keys are left out."""
    REFUSE = "refuse"
    """Nothing is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one image.

    Attributes:
        unpacked_bytes: Bytes of all layers after decompression.
        file_count: Entries of all layers.
        path_bytes: Length of one path or link target.
        metadata_bytes: Names, link targets and extended attributes of all entries together, which
            are held in memory.
        free_bytes: Free disk that is left alone.
    """

    unpacked_bytes: int = 16 * GIB
    file_count: int = 1_000_000
    path_bytes: int = 4095
    metadata_bytes: int = 64 * MIB
    free_bytes: int = GIB // 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer: where its blob is in the sandbox, and what it must be.

    Attributes:
        path: File to read.
        digest: `sha256:…` of the file.
        size_bytes: Length of the file.
        diff_id: `sha256:…` of the tar in it, as the image's configuration says.
    """

    path: str
    digest: str
    size_bytes: int
    diff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Layers, lowest first, and where the file system goes.

    Attributes:
        output: File to write; empty: only look, as when a policy is tried.
        format: `squashfs` or `ext4`.
        rules: What is done about what a policy objects to; what is absent is allowed.
        user: Whom the image runs as, who is looked up in it.
    """

    layers: tuple[Layer, ...]
    output: str
    scratch: str
    format: str = "squashfs"
    rules: Mapping[Rule, Action] = field(default_factory=dict[Rule, Action])
    limits: Limits = field(default_factory=Limits)
    processors: int = 2
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule met in the tree, before it was changed.

    Attributes:
        paths: In the image, sorted, without control characters; the first 100.
        path_count: How many there are in all.
    """

    rule: Rule
    action: Action
    paths: tuple[str, ...]
    path_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An installed package, as the image's own database has it.

    Attributes:
        manager: `dpkg`, `apk` or `rpm`.
    """

    manager: str
    name: str
    version: str
    architecture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flattened:
    """What was written.

    Attributes:
        size_bytes: Length of the file system; 0: none was written, since the plan names no output
            or a rule refused what it found.
        unpacked_bytes: Bytes of all files in it.
        file_count: Names in it.
        notes: What a person should know, for the build's log.
        findings: One for each rule of the plan, in the order of `Rule`.
        packages: Sorted; at most 10,000, and a note says so where there are more.
        user_id: Of the plan's user; None: the image does not know it.
    """

    size_bytes: int
    unpacked_bytes: int
    file_count: int
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    packages: tuple[Package, ...] = ()
    user_id: int | None = None


def encode(value: Plan | Flattened) -> str:
    """As JSON, for the pipe between builderd and the process in the sandbox."""
    return json.dumps(asdict(value))


def read_plan(text: str) -> Plan:
    """What `encode` wrote of a plan."""
    raw: dict[str, Any] = json.loads(text)
    raw["layers"] = tuple(Layer(**layer) for layer in raw["layers"])
    raw["limits"] = Limits(**raw["limits"])
    raw["rules"] = {Rule(rule): Action(action) for rule, action in raw["rules"].items()}
    return Plan(**raw)


def read_flattened(raw: dict[str, Any]) -> Flattened:
    """What `encode` wrote of a result, already taken out of its JSON."""
    findings = tuple(
        Finding(
            rule=Rule(one["rule"]),
            action=Action(one["action"]),
            paths=tuple(one["paths"]),
            path_count=one["path_count"],
        )
        for one in raw["findings"]
    )
    packages = tuple(Package(**one) for one in raw["packages"])
    rest: dict[str, Any] = {
        **raw,
        "notes": tuple(raw["notes"]),
        "findings": findings,
        "packages": packages,
    }
    return Flattened(**rest)
