"""Which modules load, and in which order."""

import pytest

from ironworks.metald.guest.modules import (
    STAGES,
    Module,
    ModuleError,
    module_name,
    parse_dependencies,
    resolve,
)

DEP = """\
kernel/v/virtio_ring.ko:
kernel/v/virtio.ko: kernel/v/virtio_ring.ko
kernel/v/virtio_pci.ko.xz: kernel/v/virtio.ko kernel/v/virtio_ring.ko
kernel/n/virtio_net.ko: kernel/n/net_failover.ko kernel/n/failover.ko kernel/v/virtio.ko kernel/v/virtio_ring.ko
kernel/n/net_failover.ko: kernel/n/failover.ko
kernel/n/failover.ko:
kernel/r/virtio-rng.ko: kernel/v/virtio.ko kernel/v/virtio_ring.ko
"""  # noqa: E501 - as depmod writes it


def test_names_are_those_that_the_kernel_uses() -> None:
    assert module_name("kernel/r/virtio-rng.ko") == "virtio_rng"
    assert module_name("kernel/v/virtio_pci.ko.xz") == "virtio_pci"


def test_what_is_needed_comes_first() -> None:
    path, needs = parse_dependencies(DEP)["virtio_net"]
    assert path == "kernel/n/virtio_net.ko"
    assert needs == (
        "kernel/v/virtio_ring.ko",
        "kernel/v/virtio.ko",
        "kernel/n/failover.ko",
        "kernel/n/net_failover.ko",
    )


def test_each_stage_lists_what_it_adds_to_the_first() -> None:
    stages = {"disk": ("virtio_pci",), "net": ("virtio_net",), "entropy": ("virtio_rng",)}
    assert resolve(stages, modules_dep=DEP, modules_builtin="") == (
        Module(stage="disk", path="kernel/v/virtio_ring.ko"),
        Module(stage="disk", path="kernel/v/virtio.ko"),
        Module(stage="disk", path="kernel/v/virtio_pci.ko.xz"),
        Module(stage="net", path="kernel/n/failover.ko"),
        Module(stage="net", path="kernel/n/net_failover.ko"),
        Module(stage="net", path="kernel/n/virtio_net.ko"),
        Module(stage="entropy", path="kernel/r/virtio-rng.ko"),
    )


def test_what_two_later_stages_share_stands_in_both() -> None:
    stages = {"one": ("virtio_pci",), "two": ("failover",), "three": ("net_failover",)}
    found = resolve(stages, modules_dep=DEP, modules_builtin="")
    assert [one.stage for one in found if one.path == "kernel/n/failover.ko"] == ["two", "three"]


def test_what_is_built_in_is_not_listed() -> None:
    stages = {"disk": ("virtio_pci",), "ext4": ("ext4",)}
    found = resolve(stages, modules_dep=DEP, modules_builtin="kernel/fs/ext4/ext4.ko\n")
    assert {one.stage for one in found} == {"disk"}


def test_a_kernel_that_lacks_a_module_is_refused() -> None:
    with pytest.raises(ModuleError, match="no module squashfs"):
        resolve({"squashfs": ("squashfs",)}, modules_dep=DEP, modules_builtin="")


def test_the_disk_comes_first_of_all_stages() -> None:
    assert next(iter(STAGES)) == "disk"
