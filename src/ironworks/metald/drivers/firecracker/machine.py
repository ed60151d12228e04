"""What Firecracker is told of a VM before it boots; pure functions."""

from collections.abc import Sequence

from ironworks.metald.drivers.driver import RateLimits, VmmSpec
from ironworks.metald.drivers.firecracker.api import Json
from ironworks.model.units import MIB

Version = tuple[int, int, int]

KERNEL, INITRD, ROOTFS, CONFIG, SCRATCH = "kernel", "initrd", "rootfs", "config", "scratch"
METRICS, LOG, VSOCK, API = "metrics.fifo", "log.fifo", "vsock.sock", "api.sock"
VMM = "vmm"
"""Names in the chroot, whose root is Firecracker's working directory."""

GUEST_CID = 3
"""Each VM has a vsock of its own, so that all may have the same."""
CONTROL_PORT = 1024
"""The host's vsock port that init connects to; from 1024 on anybody in the guest may listen."""
INTERFACE = "eth0"
OLDEST: Version = (1, 7, 0)
"""The first that this driver works with."""
ENTROPY_SINCE: Version = (1, 4, 0)
SERIAL_LIMIT_SINCE: Version = (1, 16, 0)
RESUME_LOSES_VSOCK: tuple[Version, Version] = ((1, 16, 0), (1, 17, 0))
"""From the first, before the second: after a resume the host cannot send to the guest's vsock any
more, and Firecracker spins. Such a VM is stopped by a signal instead.

Source: pull request 6100 of Firecracker.
"""
REFILL_MS = 1000
CONSOLE_BYTES_PER_SECOND = 1024 * 1024
"""What a guest may write to its console; more is dropped before it costs the host anything."""


def kernel_command_line(extra: Sequence[str] = ()) -> str:
    """Words for the guest's kernel. Source: Firecracker's own defaults, but for `quiet`."""
    words = [
        "console=ttyS0",
        "quiet",
        "reboot=k",
        "panic=-1",
        # A probe for each of these costs milliseconds, and the device is not there.
        "8250.nr_uarts=1",
        "i8042.noaux",
        "i8042.nomux",
        "i8042.dumbkbd",
        "cryptomgr.notests",
    ]
    return " ".join([*words, *extra])


def rate_limiter(*, bytes_per_second: int, operations_per_second: int = 0) -> Json | None:
    """A rate limiter, of buckets that hold what one second allows; None if nothing is bounded."""
    buckets = {
        name: {"size": size, "refill_time": REFILL_MS}
        for name, size in (("bandwidth", bytes_per_second), ("ops", operations_per_second))
        if size
    }
    return buckets or None


def _disk_limiter(limits: RateLimits, disks: int) -> Json | None:
    """Firecracker bounds each disk by itself: each gets its part, so that the sum holds."""
    if not disks:
        return None
    return rate_limiter(
        bytes_per_second=-(-limits.disk_bytes // disks),
        operations_per_second=-(-limits.disk_operations // disks),
    )


def _drive(name: str, *, writable: bool = False, limiter: Json | None = None) -> tuple[str, Json]:
    body: dict[str, object] = {
        "drive_id": name,
        "path_on_host": name,
        # The kernel's root is the initrd; init mounts what it finds.
        "is_root_device": False,
        "is_read_only": not writable,
        # The default ignores flushes.
        "cache_type": "Writeback" if writable else "Unsafe",
    }
    if limiter is not None:
        body["rate_limiter"] = limiter
    return f"/drives/{name}", body


def _interface(spec: VmmSpec) -> tuple[str, Json]:
    body: dict[str, object] = {
        "iface_id": INTERFACE,
        "host_dev_name": spec.tap,
        "guest_mac": spec.mac,
    }
    limits = spec.rate_limits
    if receive := rate_limiter(bytes_per_second=limits.network_in_bytes):
        body["rx_rate_limiter"] = receive
    if transmit := rate_limiter(bytes_per_second=limits.network_out_bytes):
        body["tx_rate_limiter"] = transmit
    return f"/network-interfaces/{INTERFACE}", body


def configuration(spec: VmmSpec, version: Version) -> list[tuple[str, Json]]:
    """What to PUT, in this order: paths of the API and bodies.

    Args:
        spec: The VM.
        version: Firecracker's. A field or path that it does not know would be refused, and with it
            the whole VM.
    """
    boot: dict[str, object] = {
        "kernel_image_path": KERNEL,
        "boot_args": kernel_command_line(spec.kernel_args),
    }
    if spec.initrd_path is not None:
        boot["initrd_path"] = INITRD
    machine = {"vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_bytes // MIB, "smt": False}
    limiter = _disk_limiter(spec.rate_limits, 2 if spec.scratch_bytes else 1)
    # Firecracker gives its disks no names that a guest could see: init goes by their order.
    requests = [
        ("/metrics", {"metrics_path": METRICS}),
        ("/machine-config", machine),
        ("/boot-source", boot),
        _drive(ROOTFS, limiter=limiter),
        _drive(CONFIG),
    ]
    if spec.scratch_bytes:
        requests.append(_drive(SCRATCH, writable=True, limiter=limiter))
    requests += [
        _interface(spec),
        ("/vsock", {"guest_cid": GUEST_CID, "uds_path": VSOCK}),
        ("/mmds/config", {"version": "V2", "network_interfaces": [INTERFACE]}),
        ("/mmds", metadata(spec)),
    ]
    if version >= ENTROPY_SINCE:
        requests.append(("/entropy", {}))
    if version >= SERIAL_LIMIT_SINCE:
        bucket = {"size": CONSOLE_BYTES_PER_SECOND, "refill_time": REFILL_MS}
        requests.append(("/serial", {"rate_limiter": bucket}))
    return requests


def pauses_by_signal(version: Version) -> bool:
    """Whether a version's own pause is not to be used."""
    first, fixed = RESUME_LOSES_VSOCK
    return first <= version < fixed


def metadata(spec: VmmSpec) -> Json:
    """What the guest can ask 169.254.169.254 for, with a session token (version 2 only)."""
    data = {"instance-id": spec.vm_id, "local-hostname": spec.guest.hostname}
    return {"latest": {"meta-data": data}}
