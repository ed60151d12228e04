"""Sockets at paths of any length."""

from pathlib import Path

import pytest

from ironworks.metald.drivers.sockets import connect, listen


def test_a_path_longer_than_an_address_works(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    path = directory / "qmp.sock"
    with listen(path) as listener, connect(path) as ours:
        theirs, _ = listener.accept()
        with theirs:
            theirs.sendall(b"hello")
            assert ours.recv(5) == b"hello"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_stood_there_before_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    path.write_text("stale")
    with listen(path), connect(path):
        pass
    with listen(path), connect(path):
        pass


def test_nobody_listening_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(tmp_path / "none.sock")
    listen(tmp_path / "closed.sock").close()
    with pytest.raises(ConnectionRefusedError):
        connect(tmp_path / "closed.sock")
    with pytest.raises(FileNotFoundError):
        listen(tmp_path / "no-directory" / "x.sock")
