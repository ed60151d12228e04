"""The words of a refusal."""

from __future__ import annotations

from ironworks.model.errors import InvalidRequest

_SHOWN_CHARS = 200


def bad(message: str, name: bytes = b"") -> InvalidRequest:
    """A refusal of a layer; names the entry."""
    where = f" at {printable(name)}" if name else ""
    return InvalidRequest(f"A layer of the image is refused{where}: {message}.")


def printable(name: bytes) -> str:
    """A name for people: bounded, without control characters."""
    text = name.decode("utf-8", "backslashreplace")[:_SHOWN_CHARS]
    return "".join(char if char.isprintable() else "?" for char in text)
