"""nftables without a process: libnftables, the library behind `nft`, called through ctypes.

A `Firewall` speaks to the network namespace of the thread that makes it, from any thread later on:
the namespace is that of its netlink socket. The library keeps a few tables of its own without
locks, so that one call is made at a time; each takes about a millisecond. It waits with select(),
which ends the process where a socket's number is 1,024 or more: some lower ones are kept for it.
"""

import ctypes
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from types import TracebackType
from typing import Any, Self, cast

from ironworks.model.errors import FailedPrecondition

_JSON = 1 << 4
_LIBRARY = "libnftables.so.1"
_SELECTABLE = 1024
_KEPT = 32
_ATTEMPTS = 100
_NETFILTER = 12
_lock = threading.Lock()
_kept: list[int] = []


class FirewallError(Exception):
    """The kernel, or the library, refused a change; the text is the library's."""


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise FailedPrecondition(
            f"{_LIBRARY} is missing, so VMs cannot have a firewall.",
            hint="Run `./iron setup`, which installs deploy/debian-packages.txt.",
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
    library.nft_ctx_free.argtypes, library.nft_ctx_free.restype = [ctypes.c_void_p], None
    return library


def _keep() -> None:
    """Keep low numbers of descriptors for sockets of the library."""
    while len(_kept) < _KEPT:
        number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if number >= _SELECTABLE:
            os.close(number)
            return
        _kept.append(number)


# Now: a host with many VMs has none left when it needs them.
_keep()


def _lowest() -> int:
    """The number that the next descriptor of this process gets."""
    number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if number >= _SELECTABLE and _kept:
        os.close(number)
        number = _kept.pop()
    os.close(number)
    return number


def _is_of_netfilter(number: int) -> bool:
    try:
        found = socket.socket(fileno=number)
    except OSError:
        return False
    is_it = (found.family, found.proto) == (socket.AF_NETLINK, _NETFILTER)
    found.detach()
    return is_it


def _new_context(library: ctypes.CDLL) -> object:
    """A context whose socket the library can wait for.

    Raises:
        FirewallError: the process has too many descriptors.
    """
    for _ in range(_ATTEMPTS):
        number = _lowest()
        if number >= _SELECTABLE:
            break
        context = library.nft_ctx_new(0)
        # Another thread may have been quicker: then nobody knows which number this one has.
        if _is_of_netfilter(number):
            return context
        library.nft_ctx_free(context)
        _keep()
    raise FirewallError("There are too many open files for the firewall to be changed.")


class Firewall(AbstractContextManager["Firewall"]):
    """The nftables of one namespace. Calls block."""

    def __init__(self) -> None:
        """Open the socket, in the namespace of this thread.

        Raises:
            FirewallError: the process has too many descriptors.
        """
        with _lock:
            self._library = _library()
            self._context = _new_context(self._library)
            self._library.nft_ctx_buffer_output(self._context)
            self._library.nft_ctx_buffer_error(self._context)
            self._library.nft_ctx_output_set_flags(self._context, _JSON)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the socket."""
        self.close()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        with _lock:
            if self._context is not None:
                self._library.nft_ctx_free(self._context)
                self._context = None
                _keep()

    def apply(self, script: str) -> None:
        """Take over all of a script, in one transaction, or nothing of it.

        Raises:
            FirewallError: it was refused.
        """
        self._run(script)

    def read(self, command: str) -> list[dict[str, Any]]:
        """The objects that a `list` or `get` command answers, as libnftables-json(5) has them.

        Raises:
            FirewallError: there is nothing of this name.
        """
        answer = self._run(command)
        if not answer:
            return []
        return cast("list[dict[str, Any]]", json.loads(answer)["nftables"])

    def read_text(self, command: str) -> str:
        """What a command answers as text: `get element` knows no JSON in nftables 1.0.

        Raises:
            FirewallError: there is nothing of this name.
        """
        return self._run(command).decode()

    def has_rules(self, table: str, rules: Mapping[str, int]) -> bool:
        """Whether a table, named with its family, has so many rules in each of these chains."""
        try:
            listed = self.read(f"list table {table}")
        except FirewallError:
            return False
        found: Counter[str] = Counter()
        for one in listed:
            if "chain" in one:
                found[str(one["chain"]["name"])] += 0
            if "rule" in one:
                found[str(one["rule"]["chain"])] += 1
        return all(found.get(chain) == count for chain, count in rules.items())

    def drop_table(self, table: str) -> None:
        """Remove a table. Idempotent."""
        # Made before it is removed, so that it need not be there.
        self._run(f"add table {table}\ndelete table {table}")

    def _run(self, commands: str) -> bytes:
        with _lock:
            status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
            output = cast("bytes", self._library.nft_ctx_get_output_buffer(self._context))
            error = cast("bytes", self._library.nft_ctx_get_error_buffer(self._context))
        if status != 0:
            raise FirewallError(error.decode(errors="replace")[:2000])
        return output
