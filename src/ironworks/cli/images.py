"""Where an image is: on this machine, which sends it, or where the platform finds it itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ironworks.model.errors import NotFound
from ironworks.model.units import format_bytes
from ironworks.sdk import AsyncIronworks

_SCHEMES = ("oci:", "oci-archive:", "docker-archive:")
_STEPS = 10


def here(image: str, directory: Path) -> tuple[Path, str] | None:
    """The path on this machine that an image names, and its name there; None: it is elsewhere.

    A path is this machine's if it is relative (`./app.tar`, `oci:app:v1`), or if it is given
    without a scheme and exists here; without `./` it must look like no name of a repository: an OCI
    layout, or a file with `.tar` or `.tgz` in its name. From the root and with a scheme it is the
    platform's.

    Raises:
        NotFound: it is relative, and there is nothing.
    """
    for scheme in _SCHEMES:
        if image.startswith(scheme):
            path, _, name = image.removeprefix(scheme).partition(":")
            return None if path.startswith("/") else (_existing(directory / path), name)
    if image.startswith("/"):
        return (Path(image), "") if Path(image).exists() else None
    if image.startswith(("./", "../")) or image in {".", ".."}:
        return _existing(directory / image), ""
    path, _, name = image.partition(":")
    return ((directory / path).resolve(), name) if _is_image(directory / path) else None


def _is_image(path: Path) -> bool:
    if {".tar", ".tgz"} & set(path.suffixes):
        return path.is_file()
    return (path / "oci-layout").is_file()


def _existing(path: Path) -> Path:
    if not path.exists():
        raise NotFound(f"There is no {path} on this machine.")
    return path.resolve()


async def sent(client: AsyncIronworks, image: str, say: Callable[[str], None]) -> str:
    """`image`, or the reference of what was uploaded if it is on this machine."""
    found = here(image, Path.cwd())
    if found is None:
        return image
    path, name = found
    said = 0

    def progress(sent_bytes: int, size_bytes: int) -> None:
        nonlocal said
        step = sent_bytes * _STEPS // size_bytes
        if step > said:
            said = step
            say(f"sent {format_bytes(sent_bytes)} of {format_bytes(size_bytes)}")

    reference = await client.builds.upload(path, progress=progress)
    say(f"{path} is {reference}")
    return f"{reference}:{name}" if name else reference
