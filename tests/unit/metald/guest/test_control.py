"""The host's end of the control channel, without a guest."""

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.metald.guest.control import (
    MAX_CONNECTION_BYTES,
    MAX_LINE_BYTES,
    BootFailed,
    ControlChannel,
    Ended,
    LineReader,
    Memory,
    Message,
    Ready,
    find_last_word,
    parse_message,
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ready", Ready()),
        ("exited 0", Ended(status=0)),
        ("exited 255", Ended(status=255)),
        ("signal 9", Ended(status=137)),
        ("failed The disk\x1b[2J is gone.", BootFailed(sentence="The disk[2J is gone.")),
        ("memory 10 4", Memory(total_bytes=10240, available_bytes=4096)),
        ("memory 10 11", Memory(total_bytes=10240, available_bytes=10240)),
        ("memory 10", None),
        ("memory -1 4", None),
        ("memory 9999999999999999 1", None),
        ("exited 256", None),
        ("exited -1", None),
        ("exited ٣", None),
        ("signal 0", None),
        ("signal 65", None),
        ("failed  ", None),
        ("ready now", None),
        ("", None),
    ],
)
def test_messages(line: str, message: Message | None) -> None:
    assert parse_message(line) == message


def test_sentences() -> None:
    assert Ended(status=3).sentence == "The workload ended with status 3."
    assert Ended(status=143).sentence == "The workload was ended by signal 15."


@given(st.text())
def test_no_line_is_too_strange_to_be_read(line: str) -> None:
    message = parse_message(line)
    assert message is None or isinstance(message, Ready | Ended | BootFailed)


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=20))
def test_lines_do_not_depend_on_how_the_stream_was_cut(lines: list[bytes]) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    whole, reader = LineReader().feed(stream), LineReader()
    pieces = [line for byte in stream for line in reader.feed(bytes([byte]))]
    assert pieces == whole
    assert len(whole) == len(lines)


def test_a_line_that_is_too_long_is_dropped_and_the_next_one_read() -> None:
    reader = LineReader()
    for _ in range(10):
        assert reader.feed(b"x" * MAX_LINE_BYTES) == []
    assert reader.feed(b"y\nready\n") == ["ready"]


def test_the_last_word_is_the_one_that_counts() -> None:
    console = ("ironworks: exited 3", "ironworks: stopping: signal 15", "ironworks: exited 4")
    assert find_last_word((*console, "[ 1.5] reboot: Power down")) == Ended(status=4)
    assert find_last_word(("ironworks: failed: No disk.",)) == BootFailed(sentence="No disk.")
    assert find_last_word(("exited 3", "ironworks: ready")) is None


async def open_pair() -> tuple[ControlChannel, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(ControlChannel, sock=ours)
    return channel, theirs


async def test_a_new_connection_asks_and_hears() -> None:
    channel, guest = await open_pair()
    loop = asyncio.get_running_loop()
    with guest:
        assert await loop.sock_recv(guest, 100) == b"status\n"
        await loop.sock_sendall(guest, b"nonsense\nready\nexited 2\nexited 3\n")
        async with asyncio.timeout(10):
            await channel.ready.wait()
        assert channel.last_word == Ended(status=2)
        channel.send("stop")
        assert await loop.sock_recv(guest, 100) == b"stop\n"
        channel.close()
        await channel.wait_closed()
        assert await loop.sock_recv(guest, 100) == b""
    assert not channel.connected
    channel.send("stop")


async def test_the_guest_is_asked_for_its_memory() -> None:
    channel, guest = await open_pair()
    loop = asyncio.get_running_loop()
    with guest:
        assert await loop.sock_recv(guest, 100) == b"status\n"
        for kib in (100, 200):
            asked = asyncio.gather(channel.memory(), channel.memory())
            await asyncio.sleep(0)
            assert (await loop.sock_recv(guest, 100)).startswith(b"memory\n")
            await loop.sock_sendall(guest, b"memory 1000 %d\nmemory 7 7\n" % kib)
            one, other = await asked
            assert one == other == Memory(total_bytes=1000 * 1024, available_bytes=kib * 1024)
            await asyncio.sleep(0)
        channel.close()
        await channel.wait_closed()
    with pytest.raises(ConnectionError):
        await channel.memory()


async def test_a_guest_that_floods_is_not_listened_to() -> None:
    channel, guest = await open_pair()
    loop = asyncio.get_running_loop()

    async def flood() -> None:
        for _ in range(2 * MAX_CONNECTION_BYTES // 1024 + 1024):
            await loop.sock_sendall(guest, b"x" * 1024)
            await asyncio.sleep(0)

    with guest:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await flood()
        assert not channel.connected
