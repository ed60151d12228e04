"""What the driver puts into a VM's directory."""

import os
import stat
from pathlib import Path

import pytest

from ironworks.metald.drivers.driver import GuestConfig, VmmSpec
from ironworks.metald.drivers.qemu.files import KVM, VmFiles
from ironworks.metald.guest.config import MAGIC, ConfigError


def spec_in(jail_dir: Path, *argv: str) -> VmmSpec:
    return VmmSpec(
        vm_id="vm_1",
        vcpus=1,
        memory_bytes=1 << 27,
        kernel_path=jail_dir / "k",
        initrd_path=None,
        rootfs_path=jail_dir / "r",
        rootfs_format="squashfs",
        guest=GuestConfig(hostname="h", argv=argv, env=(("SECRET", "x"),)),
        jail_dir=jail_dir,
        uid=1_900_004,
        gid=1_900_004,
        netns="n",
        tap="t",
        mac="02:00:00:00:00:01",
        cgroup_join_paths=(),
    )


@pytest.mark.root
def test_the_config_is_for_root_and_the_vm_only(tmp_path: Path) -> None:
    files = VmFiles(tmp_path)
    files.config.write_text("stale")
    files.write_config(spec_in(tmp_path, "sh"))
    status = files.config.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 1_900_004, 0o440)
    assert files.config.read_bytes().startswith(MAGIC)
    with pytest.raises(ConfigError):
        files.write_config(spec_in(tmp_path))


def test_all_of_it_and_nothing_else_is_removed(tmp_path: Path) -> None:
    files = VmFiles(tmp_path)
    for path in files.all:
        path.write_text("")
    (tmp_path / "rootfs").write_text("not ours")
    files.remove()
    files.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["rootfs"]


@pytest.mark.root
@pytest.mark.skipif(not KVM.exists(), reason="there is no /dev/kvm")
def test_the_device_node_is_for_one_vm_only(tmp_path: Path) -> None:
    files = VmFiles(tmp_path)
    files.make_kvm_node(1_900_004)
    status = files.kvm.stat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == os.stat(KVM).st_rdev  # noqa: PTH116 - a device
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (1_900_004, 0o600)
