"""The fake driver's VMM and guest in one small process: `python -I -S fake_guest.py CONFIG`.

It is started as root inside the VM's network namespace, joins the VM's cgroup, drops to the VM's
uid and gid, and then obeys one JSON object a line on a unix socket: `boot`, `ready`, `shutdown`.
Once booted it answers HTTP on its port. Imports only what starts fast; knows nothing of ironworks.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_BODY = b"fake workload\n"


class Guest:
    """State of the process."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Take the configuration that the driver wrote."""
        self.config = config
        self.selector = selectors.DefaultSelector()
        self.deadlines: list[tuple[float, Callable[[], None]]] = []
        self.waiting: list[socket.socket] = []
        self.booted = False
        self.ready = False
        self.exit_descriptor = -1

    def log(self, text: str) -> None:
        """Write a line to the console."""
        os.write(1, text.encode() + b"\n")

    def confine(self) -> None:
        """Join the cgroup, open what only root can reach, give up root."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self.exit_descriptor = os.open(self.config["exit_file"], flags, 0o600)
        for path in self.config["cgroup_join_paths"]:
            with open(path, "w") as file:  # noqa: PTH123 - pathlib costs start-up time
                file.write(str(os.getpid()))
        control = socket.socket(socket.AF_UNIX)
        # By its bare name: an address has room for 107 bytes, a path may be longer.
        directory, name = os.path.split(self.config["socket"])
        os.chdir(directory)
        control.bind(name)
        os.chdir("/")
        control.listen(16)
        self.selector.register(control, selectors.EVENT_READ, self.accept_control)
        os.setgroups([])
        os.setresgid(*[self.config["gid"]] * 3)
        os.setresuid(*[self.config["uid"]] * 3)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` in a while."""
        self.deadlines.append((time.monotonic() + seconds, act))  # noqa: TID251 - a program apart

    def accept_control(self, listener: socket.socket) -> None:
        """Take a control connection."""
        connection, _ = listener.accept()
        self.selector.register(connection, selectors.EVENT_READ, self.command)

    def command(self, connection: socket.socket) -> None:
        """Obey one line; lines are short and come whole."""
        line = connection.recv(4096)
        if not line:
            self.drop(connection)
            return
        name = json.loads(line)["command"]
        if name == "boot":
            self.boot()
        elif name == "ready" and not self.ready:
            self.waiting.append(connection)
            return
        elif name == "shutdown" and not self.config["ignore_shutdown"]:
            self.after(0, lambda: self.end(0))
        connection.sendall(b'{"ok": true}\n')

    def drop(self, connection: socket.socket) -> None:
        """Close a connection."""
        self.selector.unregister(connection)
        connection.close()
        if connection in self.waiting:
            self.waiting.remove(connection)

    def boot(self) -> None:
        """Start the workload, once."""
        if self.booted:
            return
        self.booted = True
        self.log("fake guest: booting " + self.config["hostname"])
        if not self.config["never_ready"]:
            self.after(self.config["ready_after_seconds"], self.become_ready)
        if self.config["exit_after_seconds"] >= 0:
            status = self.config["exit_status"]
            self.after(self.config["exit_after_seconds"], lambda: self.end(status))

    def become_ready(self) -> None:
        """Listen, and tell those who wait."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", self.config["port"]))  # noqa: S104 - in a namespace of its own
        listener.listen(64)
        self.selector.register(listener, selectors.EVENT_READ, self.accept_http)
        self.ready = True
        self.log("fake guest: ready")
        for connection in self.waiting:
            connection.sendall(b'{"ok": true}\n')
        self.waiting.clear()

    def accept_http(self, listener: socket.socket) -> None:
        """Take an HTTP connection."""
        connection, _ = listener.accept()
        connection.settimeout(5)
        self.selector.register(connection, selectors.EVENT_READ, self.answer)

    def answer(self, connection: socket.socket) -> None:
        """Answer one request and close."""
        try:
            if connection.recv(65536):
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(_BODY)}\r\nConnection: close\r\n"
                connection.sendall(head.encode() + b"\r\n" + _BODY)
        except OSError as error:
            self.log(f"fake guest: {error}")
        self.drop(connection)

    def end(self, status: int) -> None:
        """Tell how the workload ended, and end."""
        self.log(f"fake guest: workload ended with status {status}")
        os.write(self.exit_descriptor, json.dumps({"workload_status": status}).encode())
        sys.exit(0)

    def run(self) -> None:
        """Serve until the end."""
        while True:
            now = time.monotonic()  # noqa: TID251 - a program apart
            due = [act for at, act in self.deadlines if at <= now]
            self.deadlines = [(at, act) for at, act in self.deadlines if at > now]
            for act in due:
                act()
            wait = min((at - now for at, _ in self.deadlines), default=None)
            for key, _ in self.selector.select(wait):
                key.data(key.fileobj)


def main() -> None:
    """Run the guest."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(sys.argv[1]) as file:  # noqa: PTH123 - see above
        guest = Guest(json.load(file))
    guest.confine()
    guest.run()


if __name__ == "__main__":
    main()
