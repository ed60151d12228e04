"""What the Firecracker driver puts into a VM's directory, each name once."""

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ironworks.metald.drivers.driver import VmmSpec
from ironworks.metald.drivers.firecracker import machine
from ironworks.metald.drivers.firecracker.fifo import make_fifo
from ironworks.metald.guest.config import Control, PowerOff, config_disk

JAIL = "jail"


def jailer_id(vm_id: str) -> str:
    """The VM's id as the jailer takes it: letters, digits and dashes, at most 64."""
    return "".join(char if char.isalnum() else "-" for char in vm_id)[:64]


@dataclass(frozen=True, slots=True)
class VmFiles:
    """Paths in one VM's directory."""

    jail_dir: Path
    vm_id: str
    program: str
    """Name of what the jailer starts, which it makes a directory of."""

    @property
    def chroot_base(self) -> Path:
        """What the jailer works below; all in it goes when the VM goes."""
        return self.jail_dir / JAIL

    @property
    def root(self) -> Path:
        """Firecracker's root directory."""
        return self.chroot_base / self.program / jailer_id(self.vm_id) / "root"

    @property
    def api(self) -> Path:
        """Firecracker's API."""
        return self.root / machine.API

    @property
    def control(self) -> Path:
        """Where the guest's init knocks."""
        return self.root / f"{machine.VSOCK}_{machine.CONTROL_PORT}"

    @property
    def metrics(self) -> Path:
        """The FIFO of metrics."""
        return self.root / machine.METRICS

    @property
    def log(self) -> Path:
        """The FIFO of Firecracker's log."""
        return self.root / machine.LOG

    @property
    def pid(self) -> Path:
        """Firecracker's pid, written by the jailer."""
        return self.root / f"{self.program}.pid"

    @property
    def console(self) -> Path:
        """What the guest writes to its serial console."""
        return self.jail_dir / "console.log"

    @property
    def errors(self) -> Path:
        """What keeper, jailer and Firecracker complain of."""
        return self.jail_dir / "vmm.log"

    @property
    def counters(self) -> Path:
        """Sums of the metrics."""
        return self.jail_dir / "counters"

    @property
    def scratch(self) -> Path:
        """The disk that takes what the guest writes."""
        return self.jail_dir / "scratch.img"

    @property
    def lasting(self) -> frozenset[Path]:
        """Those that a reboot keeps."""
        return frozenset({self.console, self.scratch})

    def lay_out(self, spec: VmmSpec, kernel: Path, firecracker: Path) -> None:
        """Make the chroot with all that Firecracker opens, but for what the jailer adds; blocks.

        Args:
            spec: The VM.
            kernel: An ELF, of this VM or shared with others.
            firecracker: The program; each VM gets a copy, as the jailer would make one, so that two
                VMMs share no memory.

        Raises:
            OSError: there is no room, or a file is missing.
        """
        self.root.mkdir(mode=0o700, parents=True)
        for directory in (self.chroot_base, self.root.parent.parent, self.root.parent):
            directory.chmod(0o700)
        shutil.copyfile(firecracker, self.root / machine.VMM)
        (self.root / machine.VMM).chmod(0o555)
        _share(kernel, self.root / machine.KERNEL)
        _share(spec.rootfs_path, self.root / machine.ROOTFS)
        if spec.initrd_path is not None:
            _share(spec.initrd_path, self.root / machine.INITRD)
        if spec.scratch_bytes:
            _share(self.scratch, self.root / machine.SCRATCH)
        for fifo in (self.metrics, self.log):
            make_fifo(fifo, spec.uid, spec.gid)

    def write_config(self, spec: VmmSpec) -> None:
        """Write the config disk, for root and the VM's group only: it holds the environment.

        Raises:
            ConfigError: the guest cannot be told this.
            OSError: it cannot be written.
        """
        content = config_disk(
            spec.guest,
            root_format=spec.rootfs_format,
            control=Control.VSOCK,
            control_port=machine.CONTROL_PORT,
            power_off=PowerOff.REBOOT,
            scratch=bool(spec.scratch_bytes),
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(self.root / machine.CONFIG, flags, 0o440)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), 0, spec.gid)

    def remove(self, *, but: frozenset[Path] = frozenset()) -> None:
        """Remove what is there of them, `but` some; blocks."""
        # Links in it are not followed: it lies where the VMM may have written.
        if self.chroot_base.is_dir() and not self.chroot_base.is_symlink():
            shutil.rmtree(self.chroot_base)
        for path in (self.console, self.errors, self.counters, self.scratch):
            if path not in but:
                path.unlink(missing_ok=True)


def _share(source: Path, target: Path) -> None:
    """The same file at another place; a copy where that is on another file system."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)
        shutil.copymode(source, target)
