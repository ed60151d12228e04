"""Stands for `jailer` and `firecracker`: takes their command lines, serves enough of their API.

As jailer it leaves Firecracker behind as an orphan, with its pid written down, in its root, as its
user. As Firecracker it answers the API, tells metrics, and for a guest connects to the host over
"vsock" and obeys `stop`. `orders.json` beside the program says what it is to do otherwise.
"""

# ruff: noqa: T201, TID251 - a program apart, which stands for another one

import itertools
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any


def jail(orders_path: Path, words: list[str]) -> None:
    """Do as the jailer does, but for what needs a kernel's help."""
    options = dict(itertools.pairwise(words))
    program = Path(options["--exec-file"])
    root = Path(options["--chroot-base-dir"]) / program.name / options["--id"] / "root"
    os.chdir(root)
    os.chown(".", int(options["--uid"]), int(options["--gid"]))
    orders = json.loads(orders_path.read_text())
    child = os.fork()
    if child:
        Path(f"{program.name}.pid").write_text(str(child))
        sys.exit(0)
    os.setgroups([])
    os.setgid(int(options["--gid"]))
    os.setuid(int(options["--uid"]))
    # Where the program is may be closed to that user, so nothing is executed anew.
    be_firecracker(orders)


class Firecracker:
    """State of the fake."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders = orders
        self.started = False
        self.paused = False
        self.seen: list[str] = []
        self.metrics = -1

    def tell_metrics(self) -> None:
        disk = {"read_bytes": 10, "write_bytes": 1, "read_count": 2, "write_count": 1}
        line = {"utc_timestamp_ms": 1, "block": disk, "block_rootfs": disk}
        os.write(self.metrics, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def guest(self) -> None:
        """Be the guest's init."""
        print("guest: booted", flush=True)
        while True:
            with socket.socket(socket.AF_UNIX) as host:
                try:
                    host.connect("vsock.sock_1024")
                    self.talk(host)
                except OSError:
                    time.sleep(0.02)

    def talk(self, host: socket.socket) -> None:
        for line in host.makefile("r"):
            word = line.split()[0]
            if word == "status":
                host.sendall(b"ready\n")
            elif word == "memory":
                host.sendall(b"memory 100 50\n")
            elif word == "stop":
                host.sendall(b"exited 0\n")
                print("ironworks: exited 0", flush=True)
                os._exit(int(self.orders.get("exit", 0)))
            print(f"guest: heard {word}", flush=True)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self.seen.append(f"{method} {path}")
        if path in self.orders.get("refuse", []):
            return "400 Bad Request", {"fault_message": f"{path} is refused."}
        if path == "/version":
            return "200 OK", {"firecracker_version": self.orders.get("version", "1.16.1")}
        if path == "/":
            return "200 OK", {"state": self.state()}
        if path == "/vm":
            self.paused = body["state"] == "Paused"
        if path == "/metrics":
            self.metrics = os.open(body["metrics_path"], os.O_RDWR | os.O_NONBLOCK)
        if path == "/actions":
            return self.act(body["action_type"])
        return "204 No Content", {}

    def state(self) -> str:
        if not self.started:
            return "Not started"
        return "Paused" if self.paused else "Running"

    def act(self, action: str) -> tuple[str, dict[str, Any]]:
        if action == "InstanceStart":
            self.started = True
            self.tell_metrics()
            if "exit_at_start" in self.orders:
                os._exit(self.orders["exit_at_start"])
            threading.Thread(target=self.guest, daemon=True).start()
        elif not self.started:
            message = "The requested operation is not supported before starting the microVM."
            return "400 Bad Request", {"fault_message": message}
        elif action == "FlushMetrics":
            self.tell_metrics()
        elif action == "SendCtrlAltDel":
            print("guest: Ctrl-Alt-Del", flush=True)
            # As a guest does: after the answer.
            threading.Timer(0.2, os._exit, (0,)).start()
        return "204 No Content", {}

    def serve(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("api.sock")
            listener.listen(10)
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self.converse, args=(connection,), daemon=True).start()

    def converse(self, connection: socket.socket) -> None:
        stream = connection.makefile("rwb")
        while head := stream.readline():
            method, path, _ = head.decode().split()
            length = 0
            while (line := stream.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = json.loads(stream.read(length) or b"{}")
            status, answer = self.answer(method, path, body)
            content = json.dumps(answer).encode() if answer else b""
            stream.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode())
            stream.write(content)
            stream.flush()


def be_firecracker(orders: dict[str, Any]) -> None:
    """Serve, or fail as ordered."""
    if "exit_early" in orders:
        print(orders.get("complaint", ""), file=sys.stderr, flush=True)
        os._exit(orders["exit_early"])
    Firecracker(orders).serve()


if __name__ == "__main__":
    jail(Path(sys.argv[1]).with_name("orders.json"), sys.argv[2:])
