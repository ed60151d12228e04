"""How bubblewrap and the keeper tell of QEMU's process."""

import json
from pathlib import Path

_SIGNAL_BASE = 128
_MAX_STATUS_BYTES = 64 * 1024


def vmm_status(keeper_status: int | None) -> int | None:
    """Undo the shell's way of telling signals (128 + number), in which jail and keeper answer."""
    if keeper_status is not None and keeper_status > _SIGNAL_BASE:
        return _SIGNAL_BASE - keeper_status
    return keeper_status


def read_status_file(path: Path) -> tuple[int | None, int | None]:
    """Read what bubblewrap wrote: pid of the jailed program, and its exit code once it has one."""
    pid: int | None = None
    code: int | None = None
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_STATUS_BYTES).decode(errors="replace")
    except OSError:
        return None, None
    for line in text.splitlines():
        try:
            record = json.loads(line)
            pid = int(record.get("child-pid", pid or 0)) or None
            code = int(record["exit-code"]) if "exit-code" in record else code
        except (ValueError, TypeError, AttributeError):
            continue
    return pid, code
