"""Makes, finds and removes the network of a slot."""

import asyncio
import contextlib
import errno
import subprocess
from pathlib import Path
from typing import Protocol

from ironworks.metald.network import namespace, naming
from ironworks.metald.network.links import LinkError, Links, make_tap, set_sysctls
from ironworks.metald.network.naming import SlotNames, names_of, slot_of_netns, slot_of_veth
from ironworks.metald.network.rules import ruleset
from ironworks.model.errors import FailedPrecondition, Internal

NFT_TIMEOUT_SECONDS = 10
_SYSCTLS = (
    # Router advertisements and duplicate address detection would only cost time: no IPv6 yet.
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
)


class SlotTakenError(Exception):
    """Another platform on this machine uses the slot's address: take another slot."""


class Network(Protocol):
    """What the rest of metald calls."""

    def names(self, slot: int) -> SlotNames:
        """Names and address of a slot."""
        ...

    async def create(self, slot: int, owner_uid: int) -> SlotNames:
        """Make everything of a slot, or nothing."""
        ...

    async def remove(self, slot: int) -> None:
        """Remove everything of a slot. Idempotent."""
        ...

    async def present(self) -> frozenset[int]:
        """Slots of this platform of which anything is there."""
        ...

    async def drift(self, slot: int) -> tuple[str, ...]:
        """What of a slot is gone, each a sentence."""
        ...


class HostNetwork:
    """The networks of all VMs of one platform on this machine; the real `Network`."""

    def __init__(self, tag: str) -> None:
        """Work with what carries `tag` in its name, and with nothing else."""
        self._tag = tag

    def names(self, slot: int) -> SlotNames:
        """Names and address of a slot."""
        return names_of(self._tag, slot)

    async def create(self, slot: int, owner_uid: int) -> SlotNames:
        """Make namespace, tap, veth, addresses, routes and rules; all of it or nothing.

        Raises:
            SlotTakenError: its names or its address are in use.
            FailedPrecondition: not permitted, or nft or /dev/net/tun is missing.
        """
        names = self.names(slot)
        # One function of one thread makes it and undoes it: cancellation cannot come in between.
        await asyncio.to_thread(_create_or_undo, names, owner_uid)
        return names

    async def remove(self, slot: int) -> None:
        """Remove everything of a slot, whole or half made. Idempotent."""
        await asyncio.to_thread(_remove, self.names(slot))

    async def present(self) -> frozenset[int]:
        """Slots of this platform of which anything is there."""
        return await asyncio.to_thread(self._present)

    def _present(self) -> frozenset[int]:
        bound: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            bound = [path.name for path in naming.NETNS_DIRECTORY.iterdir()]
        with Links() as links:
            veths = {slot_of_veth(self._tag, name) for name in links.names()}
        slots = veths | {slot_of_netns(self._tag, name) for name in bound}
        return frozenset(slot for slot in slots if slot is not None)

    async def drift(self, slot: int) -> tuple[str, ...]:
        """What of a slot is gone, each a sentence."""
        return await asyncio.to_thread(_drift, self.names(slot))


def _create_or_undo(names: SlotNames, owner_uid: int) -> None:
    if names.netns_path.exists():
        raise SlotTakenError(f"{names.netns} exists.")
    try:
        _create(names, owner_uid)
    except BaseException as error:
        _remove(names)
        raise _explained(error, names) from error


def _explained(error: BaseException, names: SlotNames) -> BaseException:
    if isinstance(error, LinkError):
        if error.number == errno.EEXIST:
            return SlotTakenError(f"{names.veth} or the route to {names.address} exists.")
        return FailedPrecondition(
            f"The network of the VM could not be made: {error}.",
            hint="`iron doctor` says what the host lacks.",
        )
    if isinstance(error, FileNotFoundError):
        return FailedPrecondition(
            f"The network of the VM could not be made: {error.filename} is missing.",
            hint="Run `./iron setup`, which installs deploy/debian-packages.txt.",
        )
    if isinstance(error, PermissionError):
        return FailedPrecondition(
            "The network of the VM could not be made: metald may not make namespaces.",
            hint="Run it as root.",
        )
    return error


def _create(names: SlotNames, owner_uid: int) -> None:
    namespace.create(names.netns_path, lambda: _inside_first(owner_uid))
    with Links() as links:
        links.add_veth(names.veth, naming.INNER_VETH, names.netns_path)
        links.add_address(names.veth, naming.HOST_ADDRESS, 32)
        links.up(names.veth)
        links.add_host_route(names.address, names.veth, naming.HOST_ADDRESS)
    namespace.run_in(names.netns_path, lambda: _inside_second(names))


def _inside_first(owner_uid: int) -> None:
    set_sysctls(_SYSCTLS)
    make_tap(naming.TAP, owner_uid)


def _inside_second(names: SlotNames) -> None:
    with Links() as links:
        links.up("lo")
        links.add_address(naming.TAP, naming.GATEWAY_ADDRESS, naming.GUEST_PREFIX_LENGTH)
        links.up(naming.TAP)
        links.add_address(naming.INNER_VETH, names.address, 32)
        links.up(naming.INNER_VETH)
        links.add_host_route(naming.HOST_ADDRESS, naming.INNER_VETH, names.address)
        links.add_default_route(naming.HOST_ADDRESS, naming.INNER_VETH)
    # Not runtime.process: the child must be made by this very thread to be in the namespace.
    done = subprocess.run(
        ["nft", "-f", "-"],
        input=ruleset(names).encode(),
        capture_output=True,
        timeout=NFT_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise Internal(
            "The firewall of the VM could not be set.",
            context={"stderr": done.stderr.decode(errors="replace")[-2000:]},
        )


def _remove(names: SlotNames) -> None:
    with Links() as links:
        links.delete(names.veth)
    namespace.remove(names.netns_path)


def _drift(names: SlotNames) -> tuple[str, ...]:
    missing: list[str] = []
    with Links() as links:
        if links.index(names.veth) is None:
            missing.append(f"Its interface {names.veth} on the host is gone.")
    if not names.netns_path.exists():
        missing.append(f"Its network namespace {names.netns} is gone.")
        return tuple(missing)

    def tap_there() -> bool:
        return (
            Path("/proc/thread-self/net/dev").read_text(encoding="ascii").find(f"{naming.TAP}:")
            >= 0
        )

    try:
        if not namespace.run_in(names.netns_path, tap_there):
            missing.append(f"Its tap {naming.TAP} is gone.")
    except OSError:
        missing.append(f"Its network namespace {names.netns} cannot be entered.")
    return tuple(missing)
