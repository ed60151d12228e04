"""Which kernel modules the guest needs, in which order they load: read from modules.dep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

STAGES: Mapping[str, tuple[str, ...]] = {
    "disk": ("virtio_pci", "virtio_mmio", "virtio_blk"),
    "control-virtio-serial": ("virtio_console",),
    "control-vsock": ("vmw_vsock_virtio_transport",),
    "entropy": ("virtio_rng",),
    "net": ("virtio_net",),
    "squashfs": ("squashfs",),
    "erofs": ("erofs",),
    "ext4": ("ext4",),
    "overlay": ("overlay",),
    "power-button": ("button", "evdev"),
}
"""What init loads when it comes to a stage, without the dependencies; `guest/boot.h` names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One line of the initramfs' module list."""

    stage: str
    path: str
    """Within the kernel's module directory, for example `kernel/fs/squashfs/squashfs.ko`."""


class ModuleError(ValueError):
    """The kernel lacks a module; the message is a sentence for people."""


def module_name(path: str) -> str:
    """Name of the module in a file: without directory and endings, `-` as `_`."""
    return PurePosixPath(path).name.partition(".ko")[0].replace("-", "_")


def parse_dependencies(modules_dep: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Read modules.dep: name → (its path, the paths it needs, first to load first)."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for line in modules_dep.splitlines():
        path, colon, needs = line.partition(":")
        if colon:
            # depmod lists what a module needs with the most basic last.
            found[module_name(path)] = (path.strip(), tuple(reversed(needs.split())))
    return found


def resolve(
    stages: Mapping[str, Sequence[str]], *, modules_dep: str, modules_builtin: str
) -> tuple[Module, ...]:
    """List what to load for each stage, in order.

    What a stage shares with the first one, through which every boot goes, is left out of it; what
    two later stages share stands in both, since init may need either alone. Init passes over what
    it has loaded.

    Raises:
        ModuleError: the kernel neither has a module built in nor beside it.
    """
    dependencies = parse_dependencies(modules_dep)
    builtin = {module_name(line) for line in modules_builtin.split()}
    listed: list[Module] = []
    first: set[str] = set()
    for stage, names in stages.items():
        in_stage: list[str] = []
        for name in names:
            if name in builtin:
                continue
            if name not in dependencies:
                raise ModuleError(
                    f"The guest kernel has no module {name}: it cannot be used for VMs."
                )
            path, needs = dependencies[name]
            in_stage += [one for one in (*needs, path) if one not in in_stage]
        first = first or set(in_stage)
        shared = first if listed else set[str]()
        listed += [Module(stage=stage, path=path) for path in in_stage if path not in shared]
    return tuple(listed)
