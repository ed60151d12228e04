"""The archive writer against the `cpio` program."""

import stat
import subprocess
from pathlib import Path

import pytest

from ironworks.metald.guest.cpio import Entry, write_archive

ENTRIES = [
    Entry.directory("dev"),
    Entry.character_device("dev/console", 5, 1, 0o600),
    Entry.file("init", b"#!", 0o755),
    Entry.file("empty", b""),
    Entry.file("odd-name-", bytes(range(256)) * 3 + b"x"),
]


def run_cpio(archive: bytes, *words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        ["cpio", *words], input=archive, capture_output=True, check=True, cwd=cwd, timeout=30
    )
    return done.stdout.decode()


def test_cpio_lists_what_was_written() -> None:
    lines = run_cpio(write_archive(ENTRIES), "-itv", "--quiet", "--numeric-uid-gid").splitlines()
    fields = [line.split() for line in lines]
    assert [(one[0], one[-1]) for one in fields] == [
        ("drwxr-xr-x", "dev"),
        ("crw-------", "dev/console"),
        ("-rwxr-xr-x", "init"),
        ("-rw-r--r--", "empty"),
        ("-rw-r--r--", "odd-name-"),
    ]
    assert {(one[2], one[3]) for one in fields} == {("0", "0")}
    assert fields[1][4:6] == ["5,", "1"]


def test_cpio_extracts_the_same_bytes(tmp_path: Path) -> None:
    files = [entry for entry in ENTRIES if stat.S_ISREG(entry.mode)]
    run_cpio(write_archive(files), "-i", "--quiet", cwd=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        entry.name: entry.data for entry in files
    }


def test_the_same_entries_give_the_same_bytes_in_whole_blocks() -> None:
    first, second = write_archive(ENTRIES), write_archive(list(ENTRIES))
    assert first == second
    assert len(first) % 512 == 0
    assert b"TRAILER!!!" in first[-512 - 128 :]


@pytest.mark.parametrize("name", ["", "/init", "x" * 5000])
def test_names_that_an_initramfs_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        write_archive([Entry.file(name, b"")])
