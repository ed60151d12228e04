"""Read the documents of an image: index, manifest, configuration.

Source: OCI image specification 1.1; Docker's image manifest version 2, schema 2. All of it is
untrusted: sizes and types are checked, what is not needed is not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

from ironworks.builderd.types import Descriptor, HealthCheck, ImageConfig, Manifest
from ironworks.model.errors import FailedPrecondition, InvalidRequest, Unimplemented
from ironworks.runtime.architecture import host_architecture

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
_MAX_MANIFESTS = 1000
_MAX_NS = (1 << 63) - 1
_MAX_RETRIES = (1 << 31) - 1
_MAX_ARGUMENT_BYTES = 64 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_MANIFESTS = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_LAYER = re.compile(
    r"application/vnd\.oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?"
    r"|application/vnd\.docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?"
)
_FOREIGN = re.compile(r"application/vnd\..*(\.nondistributable\.|\.foreign\.).*")
_COMPRESSED = re.compile(r"application/vnd\..*\.tar[+.]([a-z0-9]{1,20})")
REF_NAME = "org.opencontainers.image.ref.name"


def _bad(message: str) -> InvalidRequest:
    return InvalidRequest(f"The image is damaged: {message}.", hint="Build and push it again.")


def _object(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _bad(f"its {what} is larger than {MAX_DOCUMENT_BYTES} bytes")
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        raise _bad(f"its {what} is not JSON") from None
    if not isinstance(value, dict):
        raise _bad(f"its {what} is not a JSON object")
    return cast("dict[str, Any]", value)


def _objects(value: object, what: str, maximum: int) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise _bad(f"its {what} are not a list")
    items = cast("list[object]", value)
    if len(items) > maximum or not all(isinstance(item, dict) for item in items):
        raise _bad(f"its {what} are more than {maximum}, or not objects")
    return cast("list[dict[str, Any]]", items)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def read_descriptor(value: object) -> Descriptor:
    """One descriptor.

    Raises:
        InvalidRequest: it lacks a SHA-256 digest or a sensible length.
    """
    if not isinstance(value, dict):
        raise _bad("a descriptor is missing")
    raw = cast("dict[str, object]", value)
    digest, size = _text(raw.get("digest")), raw.get("size")
    if not _DIGEST.fullmatch(digest):
        raise _bad("a descriptor has no SHA-256 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 44:
        raise _bad("a descriptor has no sensible size")
    return Descriptor(media_type=_text(raw.get("mediaType")), digest=digest, size_bytes=size)


def is_index(data: bytes) -> bool:
    """Whether a document lists images for platforms, rather than being one."""
    document = _object(data, "manifest")
    media_type = _text(document.get("mediaType"))
    if media_type:
        return media_type in _INDEXES
    return "manifests" in document


def choose_named(index: bytes, name: str) -> Descriptor:
    """The image of a layout that has a name; with no name, the only one.

    Raises:
        InvalidRequest: there is none, or more than one and no name.
    """
    entries = _objects(_object(index, "index.json").get("manifests"), "manifests", _MAX_MANIFESTS)
    found = [entry for entry in entries if name in ("", _text(_annotations(entry).get(REF_NAME)))]
    if not found:
        known = ", ".join(sorted(_names(entries))) or "none"
        raise InvalidRequest(
            f"The layout has no image named {name!r}." if name else "The layout has no image.",
            hint=f"Names in it: {known}.",
        )
    descriptors = [read_descriptor(entry) for entry in found]
    if len({descriptor.digest for descriptor in descriptors}) > 1:
        by_platform = [entry for entry in found if entry.get("platform")]
        if not name and len(by_platform) == len(found):
            return choose_platform(index)
        raise InvalidRequest(
            "The layout has several images.",
            hint=f"Append one of these names: {', '.join(sorted(_names(entries)))}.",
        )
    return descriptors[0]


def _annotations(entry: dict[str, Any]) -> dict[str, object]:
    value: object = entry.get("annotations")
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _names(entries: list[dict[str, Any]]) -> Iterator[str]:
    for entry in entries[:20]:
        if name := _text(_annotations(entry).get(REF_NAME)):
            yield name[:100]


def choose_platform(index: bytes) -> Descriptor:
    """The image of an index that runs on this machine.

    Raises:
        Unimplemented: there is none; says for what there are.
    """
    entries = _objects(_object(index, "index").get("manifests"), "manifests", _MAX_MANIFESTS)
    offered: list[str] = []
    for entry in entries:
        value: object = entry.get("platform")
        wanted = cast("dict[str, object]", value) if isinstance(value, dict) else {}
        system, architecture = _text(wanted.get("os")), _text(wanted.get("architecture"))
        if (system, architecture) == ("linux", host_architecture()):
            return read_descriptor(entry)
        if system not in ("", "unknown"):
            offered.append(f"{system}/{architecture}"[:40])
    raise _wrong_platform(", ".join(sorted(set(offered))) or "no platform")


def _wrong_platform(offered: str) -> Unimplemented:
    return Unimplemented(
        f"The image is for {offered}, and this platform runs linux/{host_architecture()}.",
        hint=f"Build the image for linux/{host_architecture()}.",
    )


def read_manifest(data: bytes, *, max_layers: int, max_packed_bytes: int) -> Manifest:
    """One image's manifest.

    Raises:
        InvalidRequest: it is damaged, of an unknown type, or beyond the bounds.
    """
    document = _object(data, "manifest")
    media_type = _text(document.get("mediaType"))
    if media_type and media_type not in _MANIFESTS:
        raise InvalidRequest(f"{media_type[:100]!r} is not a type of manifest that is known here.")
    layers = tuple(
        read_descriptor(layer)
        for layer in _objects(document.get("layers"), "layers", max(max_layers, 1))
    )
    for layer in layers:
        _check_layer_type(layer.media_type)
    if sum(layer.size_bytes for layer in layers) > max_packed_bytes:
        raise InvalidRequest(f"The image's layers are larger than {max_packed_bytes} bytes.")
    return Manifest(config=read_descriptor(document.get("config")), layers=layers)


def _check_layer_type(media_type: str) -> None:
    if _LAYER.fullmatch(media_type):
        return
    if _FOREIGN.fullmatch(media_type):
        raise InvalidRequest(
            "The image has a layer that may not be distributed: registries do not hold it.",
            hint="Build the image on a base that registries hold.",
        )
    compressed = _COMPRESSED.fullmatch(media_type)
    if compressed:
        raise InvalidRequest(
            f"The image has a layer that is packed as {compressed[1]!r}, which is not read here.",
            hint="Use gzip, zstd or no compression, and no encryption.",
        )
    raise InvalidRequest(
        f"The image has a layer of the unknown type {media_type[:100]!r}.",
        hint="It may not be a container image.",
    )


def read_config(data: bytes, layer_count: int) -> tuple[ImageConfig, tuple[str, ...]]:
    """How to run an image, and the digests of the tars in its layers.

    Raises:
        Unimplemented: it is for another platform.
        FailedPrecondition: it does not say what to run.
        InvalidRequest: it is damaged.
    """
    document = _object(data, "configuration")
    system, architecture = _text(document.get("os")), _text(document.get("architecture"))
    if (system, architecture) != ("linux", host_architecture()):
        raise _wrong_platform(f"{system or 'no system'}/{architecture or 'no architecture'}"[:80])
    rootfs: object = document.get("rootfs")
    diff_ids = _texts(
        cast("dict[str, object]", rootfs).get("diff_ids") if isinstance(rootfs, dict) else None
    )
    if len(diff_ids) != layer_count or not all(map(_DIGEST.fullmatch, diff_ids)):
        raise _bad("its configuration and its manifest disagree about the layers")
    value: object = document.get("config")
    config = _image_config(cast("dict[str, object]", value) if isinstance(value, dict) else {})
    if not config.entrypoint and not config.cmd:
        raise FailedPrecondition(
            "The image has neither an entrypoint nor a cmd: there is nothing to run in it.",
            hint="Set ENTRYPOINT or CMD when building the image.",
        )
    return config, diff_ids


def _image_config(raw: dict[str, object]) -> ImageConfig:
    ports: object = raw.get("ExposedPorts")
    labels: object = raw.get("Labels")
    config = ImageConfig(
        entrypoint=_texts(raw.get("Entrypoint")),
        cmd=_texts(raw.get("Cmd")),
        env=_texts(raw.get("Env")),
        user=_text(raw.get("User")),
        working_directory=_text(raw.get("WorkingDir")),
        exposed_ports=tuple(sorted(cast("dict[str, object]", ports)))
        if isinstance(ports, dict)
        else (),
        stop_signal=_text(raw.get("StopSignal")),
        labels={
            key: value
            for key, value in sorted(cast("dict[str, object]", labels).items())
            if isinstance(value, str)
        }
        if isinstance(labels, dict)
        else {},
        health_check=_health_check(raw.get("Healthcheck")),
    )
    check = () if config.health_check is None else config.health_check.test
    told = (
        *(*config.entrypoint, *config.cmd, *config.env),
        *(config.user, config.working_directory, *check),
    )
    if sum(map(len, told)) > _MAX_ARGUMENT_BYTES or any("\0" in text for text in told):
        raise InvalidRequest(
            f"The image's command line and environment are longer than {_MAX_ARGUMENT_BYTES} "
            "characters, or have a NUL."
        )
    return config


def _health_check(value: object) -> HealthCheck | None:
    if not isinstance(value, dict):
        return None
    raw = cast("dict[str, object]", value)
    return HealthCheck(
        test=_texts(raw.get("Test")),
        interval_ns=_count(raw.get("Interval")),
        timeout_ns=_count(raw.get("Timeout")),
        start_period_ns=_count(raw.get("StartPeriod")),
        retries=_count(raw.get("Retries"), _MAX_RETRIES),
    )


def _count(value: object, maximum: int = _MAX_NS) -> int:
    """A number of the configuration; what is none, or makes no sense, is taken as not said."""
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum
    return cast("int", value) if fits else 0


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, list):
        items = cast("list[object]", value)
        texts = tuple(item for item in items if isinstance(item, str))
        if len(texts) == len(items):
            return texts
    raise _bad("its configuration has something else where texts should be")
