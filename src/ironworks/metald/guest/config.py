"""The config disk: what the host tells the guest's init, on a small read-only raw disk.

A disk works alike on QEMU and Firecracker and needs no network in the guest. Its bytes:

| at | field |
|---|---|
| 0 | magic, 8 bytes, `IRONCFG` and a newline |
| 8 | version, u32, 1 |
| 12 | length of the records in bytes, u32, at most `MAX_RECORDS_BYTES` |
| 16 | CRC-32 (IEEE) of the records, u32 |
| 20 | zero, u32 |
| 24 | records: tag u16, zero u16, length u32, value |

Integers are little-endian. A string's value ends in one NUL, which its length counts, and holds no
other. Zeros pad the disk to whole sectors. `guest/config.c` is the reader; it takes nothing of this
for granted, and refuses a tag that it does not know unless the tag's top bit is set.
"""

import ipaddress
import signal
import struct
import zlib
from enum import IntEnum

from ironworks.metald.drivers.driver import GuestConfig, GuestNetwork

MAGIC = b"IRONCFG\n"
VERSION = 1
SECTOR_BYTES = 512
MAX_RECORDS_BYTES = 1024 * 1024
MAX_ARGS = 1024
MAX_ENV = 1024
MAX_NAMESERVERS = 3
MAX_STRING_BYTES = 128 * 1024
"""Longest argument or environment variable that Linux takes, with its NUL."""
MAX_STOP_GRACE_SECONDS = 24 * 60 * 60
MIN_MTU = 68
MAX_MTU = 65535
MAX_HOSTNAME_BYTES = 63
_MAX_SIGNAL = 64


class Tag(IntEnum):
    """Kinds of records; the same numbers stand in `guest/config.h`."""

    HOSTNAME = 1
    ROOT_FORMAT = 2
    OVERLAY_BYTES = 3
    ADDRESS = 4
    GATEWAY = 5
    MTU = 6
    DNS = 7
    ENV = 8
    USER = 9
    WORKDIR = 10
    ARG = 11
    STOP_SIGNAL = 12
    STOP_MS = 13
    POWER_OFF = 14
    CONTROL = 15
    CONTROL_PORT = 16
    HOSTS_LINE = 17
    CLOCK = 18
    ADDRESS_V6 = 19
    GATEWAY_V6 = 20
    DNS_V6 = 21
    IMAGE_INIT = 22
    SCRATCH = 23


class PowerOff(IntEnum):
    """How the guest ends its VMM."""

    ACPI = 0
    """QEMU ends when the machine is off."""
    REBOOT = 1
    """Firecracker on x86 ends on a reboot only."""


class Control(IntEnum):
    """What carries the control channel."""

    NONE = 0
    VIRTIO_SERIAL = 1
    VSOCK = 2


class ConfigError(ValueError):
    """The guest cannot be told this; the message is a sentence for people."""


def signal_number(name: str) -> int:
    """Number of a stop signal as an image states it: `SIGTERM`, `TERM`, `SIGRTMIN+3` or `15`.

    Raises:
        ConfigError: there is no such signal.
    """
    text = name.strip().upper()
    number = 0
    if text.isdecimal():
        number = int(text[:6])
    else:
        base, plus, offset = text.removeprefix("SIG").partition("+")
        if f"SIG{base}" in signal.Signals.__members__ and (not plus or offset.isdecimal()):
            number = signal.Signals[f"SIG{base}"].value + int(offset[:6] or "0")
    if not 1 <= number <= _MAX_SIGNAL:
        raise ConfigError(f"The stop signal {name[:32]!r} is no signal of Linux.")
    return number


def _record(tag: Tag, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, 0, len(value)) + value


def _text(tag: Tag, value: str, what: str) -> bytes:
    encoded = value.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise ConfigError(f"The {what} contains a NUL byte.")
    if len(encoded) >= MAX_STRING_BYTES:
        raise ConfigError(f"The {what} is longer than {MAX_STRING_BYTES - 1} bytes.")
    return _record(tag, encoded + b"\0")


def _number(tag: Tag, value: int) -> bytes:
    return _record(tag, struct.pack("<I", value))


def _address(text: str, what: str) -> bytes:
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError as error:
        raise ConfigError(f"The guest's {what} {text[:64]!r} is no IPv4 address.") from error


def _address_v6(text: str, what: str) -> bytes:
    try:
        return ipaddress.IPv6Address(text).packed
    except ValueError as error:
        raise ConfigError(f"The guest's {what} {text[:64]!r} is no IPv6 address.") from error


def _nameserver(text: str) -> bytes:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigError(f"The guest's nameserver {text[:64]!r} is no IP address.") from error
    return _record(
        Tag.DNS if isinstance(address, ipaddress.IPv4Address) else Tag.DNS_V6, address.packed
    )


def _network_v6(network: GuestNetwork) -> list[bytes]:
    if not network.address_v6:
        if network.gateway_v6:
            raise ConfigError("The guest has an IPv6 gateway and no IPv6 address.")
        return []
    if not 0 <= network.prefix_length_v6 <= ipaddress.IPV6LENGTH:
        raise ConfigError("The guest's IPv6 prefix length is not within 0 to 128.")
    prefix = struct.pack("<B", network.prefix_length_v6)
    records = [_record(Tag.ADDRESS_V6, prefix + _address_v6(network.address_v6, "IPv6 address"))]
    if network.gateway_v6:
        gateway = _address_v6(network.gateway_v6, "IPv6 gateway")
        records.append(_record(Tag.GATEWAY_V6, gateway))
    return records


def _network(guest: GuestConfig) -> list[bytes]:
    network = guest.network
    if not 0 <= network.prefix_length <= ipaddress.IPV4LENGTH:
        raise ConfigError("The guest's prefix length is not within 0 to 32.")
    if not MIN_MTU <= network.mtu <= MAX_MTU:
        raise ConfigError(f"The guest's MTU is not within {MIN_MTU} to {MAX_MTU}.")
    if len(network.nameservers) > MAX_NAMESERVERS:
        raise ConfigError(f"The guest has more than {MAX_NAMESERVERS} nameservers.")
    prefix = struct.pack("<B", network.prefix_length)
    return [
        _record(Tag.ADDRESS, prefix + _address(network.address, "address")),
        _record(Tag.GATEWAY, _address(network.gateway, "gateway")),
        _number(Tag.MTU, network.mtu),
        *_network_v6(network),
        *(_nameserver(server) for server in network.nameservers),
    ]


def _workload(guest: GuestConfig) -> list[bytes]:
    if not guest.argv or not guest.argv[0]:
        raise ConfigError("The image names no entrypoint and no command: nothing to run.")
    if len(guest.argv) > MAX_ARGS:
        raise ConfigError(f"The command has more than {MAX_ARGS} arguments.")
    if len(guest.env) > MAX_ENV:
        raise ConfigError(f"There are more than {MAX_ENV} environment variables.")
    if any(not name or "=" in name for name, _ in guest.env):
        raise ConfigError("An environment variable's name is empty or contains '='.")
    if guest.workdir and not guest.workdir.startswith("/"):
        raise ConfigError("The working directory is not an absolute path.")
    if not 0 <= guest.stop_grace_seconds <= MAX_STOP_GRACE_SECONDS:
        raise ConfigError("The stop grace is not within 0 seconds to a day.")
    return [
        *(_text(Tag.ENV, f"{name}={value}", f"variable {name}") for name, value in guest.env),
        _text(Tag.USER, guest.user, "user"),
        _text(Tag.WORKDIR, guest.workdir, "working directory"),
        *(_text(Tag.ARG, argument, "command") for argument in guest.argv),
        _number(Tag.STOP_SIGNAL, signal_number(guest.stop_signal or "SIGTERM")),
        _number(Tag.STOP_MS, round(guest.stop_grace_seconds * 1000)),
    ]


def config_disk(
    guest: GuestConfig,
    *,
    root_format: str,
    control: Control = Control.VIRTIO_SERIAL,
    control_port: int = 0,
    power_off: PowerOff = PowerOff.ACPI,
    overlay_bytes: int = 0,
    clock_ns: int = 0,
    scratch: bool = False,
) -> bytes:
    """Write the config disk of one VM.

    Args:
        guest: What to run and how.
        root_format: `squashfs`, `ext4` or `erofs`.
        control: What carries the control channel.
        control_port: The host's vsock port, if that is it.
        power_off: How the guest ends its VMM.
        overlay_bytes: Bound of what the guest may write to its root; 0: half of its memory.
        clock_ns: UTC nanoseconds for a machine without a clock; 0 leaves the clock alone.
        scratch: Whether there is a disk for what the guest writes to its root.

    Returns:
        Whole sectors.

    Raises:
        ConfigError: a field is out of its bounds; says which.
    """
    hostname = guest.hostname.encode("utf-8", "surrogateescape")
    if not 1 <= len(hostname) <= MAX_HOSTNAME_BYTES:
        raise ConfigError(f"The host name is empty or longer than {MAX_HOSTNAME_BYTES} bytes.")
    records = b"".join(
        [
            _text(Tag.HOSTNAME, guest.hostname, "host name"),
            _text(Tag.ROOT_FORMAT, root_format, "root format"),
            _record(Tag.OVERLAY_BYTES, struct.pack("<Q", overlay_bytes)),
            *_network(guest),
            *_workload(guest),
            _number(Tag.POWER_OFF, power_off),
            _number(Tag.CONTROL, control),
            _number(Tag.CONTROL_PORT, control_port),
            _record(Tag.CLOCK, struct.pack("<Q", clock_ns)),
            _number(Tag.IMAGE_INIT, int(guest.image_init)),
            _number(Tag.SCRATCH, int(scratch)),
        ]
    )
    if len(records) > MAX_RECORDS_BYTES:
        raise ConfigError("The command and its environment are larger than 1 MiB together.")
    header = MAGIC + struct.pack("<IIII", VERSION, len(records), zlib.crc32(records), 0)
    disk = header + records
    return disk + bytes(-len(disk) % SECTOR_BYTES)
