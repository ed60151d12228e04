"""What the flattening process is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one image.

    Attributes:
        unpacked_bytes: Bytes of all layers after decompression.
        file_count: Entries of all layers.
        path_bytes: Length of one path or link target.
        free_bytes: Free disk that is left alone.
    """

    unpacked_bytes: int = 16 * GIB
    file_count: int = 1_000_000
    path_bytes: int = 4095
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
    """Layers, lowest first, and where the file system goes."""

    layers: tuple[Layer, ...]
    output: str
    scratch: str
    limits: Limits = field(default_factory=Limits)
    processors: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Flattened:
    """What was written.

    Attributes:
        sha256: Of the file system.
        size_bytes: Length of the file system.
        unpacked_bytes: Bytes of all files in it.
        file_count: Names in it.
        notes: What a person should know, for the build's log.
    """

    sha256: str
    size_bytes: int
    unpacked_bytes: int
    file_count: int
    notes: tuple[str, ...] = ()
