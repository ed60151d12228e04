"""The host's end of the control channel: bounded lines to and from the guest's init.

`guest/control.h` lists the messages. Nothing that a guest sends is trusted: a line that is too long
or unknown is dropped, and a guest that floods costs the reading of it, nothing more.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Final

MAX_LINE_BYTES: Final = 1024
MAX_SENTENCE_CHARS: Final = 512
MAX_CONNECTION_BYTES: Final = 256 * 1024
"""A guest that sends more than this on one connection is not listened to any more."""
_SIGNAL_BASE: Final = 128
_MAX_STATUS: Final = 255
_MAX_SIGNAL: Final = 64
_KIB: Final = 1024
_ANSWER_BYTES: Final = 64
_MEMORY: Final = re.compile(r"memory ([0-9]{1,15}) ([0-9]{1,15})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The entrypoint runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The entrypoint ended; `status` is its exit status, or 128 + the signal that ended it."""

    status: int

    @property
    def sentence(self) -> str:
        """For people."""
        if self.status > _SIGNAL_BASE:
            return f"The workload was ended by signal {self.status - _SIGNAL_BASE}."
        return f"The workload ended with status {self.status}."


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFailed:
    """The entrypoint never ran; init says why."""

    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the guest's kernel says of its memory, in bytes."""

    total_bytes: int
    available_bytes: int


Message = Ready | Ended | BootFailed | Memory


def parse_message(line: str) -> Message | None:
    """Read one line of the guest's; None if it is none of ours."""
    word, _, rest = line.partition(" ")
    number = int(rest) if rest.isascii() and rest.isdecimal() and len(rest) <= len("255") else -1
    if line == "ready":
        return Ready()
    if (match := _MEMORY.fullmatch(line)) is not None:
        total, available = (int(digits) * _KIB for digits in match.groups())
        return Memory(total_bytes=total, available_bytes=min(available, total))
    if word == "exited" and 0 <= number <= _MAX_STATUS:
        return Ended(status=number)
    if word == "signal" and 1 <= number <= _MAX_SIGNAL:
        return Ended(status=_SIGNAL_BASE + number)
    if word == "failed" and rest.strip():
        text = "".join(char for char in rest if char.isprintable())
        return BootFailed(sentence=text.strip()[:MAX_SENTENCE_CHARS])
    return None


def find_last_word(console: tuple[str, ...]) -> Ended | BootFailed | None:
    """What init last said of the workload's end on the console, which a metald that was away sees.

    Args:
        console: Lines, oldest first.
    """
    for line in reversed(console):
        text = line.removeprefix("ironworks: ")
        if text == line:
            continue
        message = parse_message(text.replace("failed: ", "failed ", 1))
        if isinstance(message, Ended | BootFailed):
            return message
    return None


class LineReader:
    """Cuts a stream of bytes into lines of at most `MAX_LINE_BYTES`; longer ones are dropped."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._rest = b""
        self._overlong = False

    def feed(self, data: bytes) -> list[str]:
        """Whole lines that `data` completes."""
        lines: list[str] = []
        *whole, rest = (self._rest + data).split(b"\n")
        for line in whole:
            if not self._overlong and len(line) <= MAX_LINE_BYTES:
                lines.append(line.decode(errors="replace").rstrip("\r"))
            self._overlong = False
        if len(rest) > MAX_LINE_BYTES:
            self._overlong, rest = True, b""
        self._rest = rest
        return lines


class ControlChannel(asyncio.Protocol):
    """One connection to a guest's init, over whatever stream socket the driver has.

    Attributes:
        ready: Set once the guest says that the entrypoint runs.
        last_word: How the entrypoint ended, or why it never ran.
    """

    def __init__(self) -> None:
        """Make one that is not connected yet."""
        self.ready = asyncio.Event()
        self.last_word: Ended | BootFailed | None = None
        self._memory: asyncio.Future[Memory] | None = None
        self._lines = LineReader()
        self._bytes = 0
        self._transport: asyncio.WriteTransport | None = None
        self._released = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask at once: an earlier metald may have heard `ready` already."""
        if not isinstance(transport, asyncio.WriteTransport):
            raise TypeError("a control channel needs a stream")
        self._transport = transport
        self.send("status")

    def data_received(self, data: bytes) -> None:
        """Take in what the guest says."""
        self._bytes += len(data)
        if self._bytes > MAX_CONNECTION_BYTES:
            self.close()
            return
        for line in self._lines.feed(data):
            message = parse_message(line)
            if isinstance(message, Ready):
                self.ready.set()
            elif isinstance(message, Memory):
                if self._memory is not None and not self._memory.done():
                    self._memory.set_result(message)
            elif message is not None and self.last_word is None:
                self.last_word = message

    def connection_lost(self, exc: Exception | None) -> None:
        """The VMM is gone, or we closed."""
        del exc
        self._transport = None
        self._released.set()

    @property
    def connected(self) -> bool:
        """Whether the VMM still holds the other end."""
        return self._transport is not None

    def send(self, line: str) -> None:
        """Send one line; lost if the channel is."""
        if self._transport is not None:
            self._transport.write(line.encode() + b"\n")

    async def memory(self) -> Memory:
        """Ask the guest for its memory's state; the caller bounds the wait.

        Raises:
            ConnectionError: the channel is closed.
        """
        if self._transport is None:
            raise ConnectionError("the control channel is closed")
        if self._memory is None or self._memory.done():
            self._memory = asyncio.get_running_loop().create_future()
        # An answer that was asked for is no flood.
        self._bytes = max(0, self._bytes - _ANSWER_BYTES)
        self.send("memory")
        return await asyncio.shield(self._memory)

    async def wait_closed(self) -> None:
        """Wait until the socket of a channel that was connected once is given back."""
        await self._released.wait()

    def close(self) -> None:
        """Let go; the guest keeps what it has to say for the next metald."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
