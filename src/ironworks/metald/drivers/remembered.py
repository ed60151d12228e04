"""What drivers found out about the host, remembered for as long as it stays up."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast


def recall(path: Path, key: str) -> Mapping[str, object] | None:
    """What was remembered under this very key; None if nothing was, or it cannot be read."""
    try:
        stored: object = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict):
        return None
    found = cast("dict[str, object]", stored)
    return found if found.pop("key", None) == key else None


def remember(path: Path, key: str, facts: Mapping[str, object]) -> None:
    """Write facts down in place of what stood there.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps({"key": key, **facts}) + "\n", encoding="utf-8")
    beside.replace(path)
