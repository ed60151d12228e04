"""Unix sockets in a VM's directory, whose path may be longer than the 107 bytes of an address."""

import contextlib
import os
import socket
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def _short(path: Path) -> Generator[str]:
    """A path to the same file through an open descriptor of its directory."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def listen(path: Path) -> socket.socket:
    """Make a listening socket that only root may connect to, in place of whatever stands there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.listen(8)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path) -> socket.socket:
    """Connect to a listening socket, at once or not at all: nothing is waited for.

    Raises:
        OSError: nobody listens there, or its queue is full.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _short(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection
