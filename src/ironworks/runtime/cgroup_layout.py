"""Which cgroup controller is mounted where: v2, or v1 hierarchies beside a v2 one without any."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ironworks.model.errors import FailedPrecondition

NEEDED = ("cpu", "memory", "pids")
_V1_WANTED = ("cpu", "cpuacct", "memory", "pids", "blkio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Mount points of the controllers.

    Attributes:
        unified: The v2 hierarchy; None if there is none.
        v1: Controller → its v1 hierarchy; empty where the v2 hierarchy has the controllers. Several
            controllers may share one.
    """

    unified: Path | None
    v1: Mapping[str, Path] = field(default_factory=dict[str, Path])

    @property
    def name(self) -> str:
        """`v2` or `hybrid`."""
        return "hybrid" if self.v1 else "v2"

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every hierarchy that a limited process joins, each once."""
        unified = () if self.unified is None else (self.unified,)
        return tuple(dict.fromkeys((*self.v1.values(), *unified)))


def parse_layout(mounts: str, v2_controllers: Mapping[Path, str]) -> Layout:
    """The layout of a machine.

    Args:
        mounts: Text of `/proc/self/mounts`.
        v2_controllers: Mount point of a v2 hierarchy → text of its `cgroup.controllers`.

    Raises:
        FailedPrecondition: a controller that is needed is nowhere.
    """
    unified: Path | None = None
    v1: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, mount_point, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" and unified is None:
            unified = Path(mount_point)
        elif kind == "cgroup":
            for word in options.split(","):
                if word in _V1_WANTED:
                    v1.setdefault(word, Path(mount_point))
    of_unified = set(v2_controllers.get(unified, "").split()) if unified is not None else set[str]()
    if of_unified.issuperset(NEEDED):
        return Layout(unified=unified)
    missing = [name for name in NEEDED if name not in v1]
    if missing:
        raise FailedPrecondition(
            f"The cgroup controllers {', '.join(missing)} are not available on this host.",
            hint="Mount cgroup v2 with all controllers, or the v1 hierarchies of these.",
        )
    return Layout(unified=unified, v1=v1)


def read_layout() -> Layout:
    """The layout of this machine.

    Raises:
        FailedPrecondition: a controller that is needed is nowhere.
    """
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    controllers: dict[Path, str] = {}
    for line in mounts.splitlines():
        fields = line.split(" ")
        if fields[2] == "cgroup2":
            path = Path(fields[1])
            with contextlib.suppress(OSError):
                controllers[path] = (path / "cgroup.controllers").read_text(encoding="ascii")
    return parse_layout(mounts, controllers)
