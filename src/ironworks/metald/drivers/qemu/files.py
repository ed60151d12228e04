"""What the QEMU driver puts into a VM's directory, each name once."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ironworks.metald.drivers.driver import VmmSpec
from ironworks.metald.guest.config import config_disk

KVM = Path("/dev/kvm")


@dataclass(frozen=True, slots=True)
class VmFiles:
    """Paths in one VM's directory."""

    jail_dir: Path

    @property
    def config(self) -> Path:
        """The config disk."""
        return self.jail_dir / "config.img"

    @property
    def qmp(self) -> Path:
        """QEMU's monitor."""
        return self.jail_dir / "qmp.sock"

    @property
    def control(self) -> Path:
        """The host's end of the control channel."""
        return self.jail_dir / "control.sock"

    @property
    def console(self) -> Path:
        """What the guest writes to its serial console."""
        return self.jail_dir / "console.log"

    @property
    def errors(self) -> Path:
        """What keeper, bubblewrap and QEMU complain of."""
        return self.jail_dir / "vmm.log"

    @property
    def status(self) -> Path:
        """Pid and exit code of QEMU, written by bubblewrap."""
        return self.jail_dir / "vmm.json"

    @property
    def kvm(self) -> Path:
        """A device node for KVM that this VM's user may open, and no other VM's."""
        return self.jail_dir / "kvm"

    @property
    def scratch(self) -> Path:
        """The disk that takes what the guest writes."""
        return self.jail_dir / "scratch.img"

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return (
            self.config,
            self.qmp,
            self.control,
            self.console,
            self.errors,
            self.status,
            self.kvm,
            self.scratch,
        )

    def write_config(self, spec: VmmSpec) -> None:
        """Write the config disk, for root and the VM's group only: it holds the environment.

        Raises:
            ConfigError: the guest cannot be told this.
            OSError: it cannot be written.
        """
        content = config_disk(
            spec.guest, root_format=spec.rootfs_format, scratch=bool(spec.scratch_bytes)
        )
        self.config.unlink(missing_ok=True)
        descriptor = os.open(self.config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), 0, spec.gid)

    def make_kvm_node(self, uid: int) -> None:
        """Make KVM's device node for this VM.

        Raises:
            OSError: there is no KVM, or the file system takes no device nodes.
        """
        self.kvm.unlink(missing_ok=True)
        os.mknod(self.kvm, stat.S_IFCHR | 0o600, KVM.stat().st_rdev)
        os.chown(self.kvm, uid, 0)

    @property
    def lasting(self) -> frozenset[Path]:
        """Those that a reboot keeps."""
        return frozenset({self.console, self.scratch})

    def remove(self, *, but: frozenset[Path] = frozenset()) -> None:
        """Remove what is there of them, `but` some."""
        for path in self.all:
            if path not in but:
                path.unlink(missing_ok=True)
