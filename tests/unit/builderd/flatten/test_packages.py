"""Packages are what dpkg, apk and rpm wrote down; a damaged database is a note, not a failure."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Mapping

from ironworks.builderd.flatten.packages import find_packages
from ironworks.builderd.flatten.plan import MAX_PACKAGES

DPKG = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u4
Description: GNU C Library
 Version: not this one
 Package: nor this

Package: gone
Status: deinstall ok config-files
Version: 1

Package: half
Status: install ok half-installed
Version: 1
"""
APK = b"C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\nF:lib\nR:libc.so\n\nP:busybox\nV:1.36.1-r5\nA:x86_64\n"


def found(
    files: Mapping[str, bytes], directories: Mapping[str, Iterable[str]] | None = None
) -> tuple[list[tuple[str, str, str, str]], tuple[str, ...]]:
    names = {key: [one.encode() for one in value] for key, value in (directories or {}).items()}
    packages, notes = find_packages(
        lambda path: files.get(path.decode()), lambda path: names.get(path.decode(), [])
    )
    return [(one.manager, one.name, one.version, one.architecture) for one in packages], notes


def rpm_header(tags: Mapping[int, str | int]) -> bytes:
    index, store = b"", b""
    for tag, value in tags.items():
        kind = 4 if isinstance(value, int) else 6
        index += struct.pack(">IIiI", tag, kind, len(store), 1)
        store += struct.pack(">I", value) if isinstance(value, int) else value.encode() + b"\0"
    return struct.pack(">II", len(tags), len(store)) + index + store


def rpm_database(headers: Iterable[bytes]) -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB)")
    database.executemany("INSERT INTO Packages (blob) VALUES (?)", [(one,) for one in headers])
    database.commit()
    data = database.serialize()
    database.close()
    return data


def test_an_image_without_any() -> None:
    assert found({}) == ([], ())


def test_dpkg_lists_what_is_installed() -> None:
    packages, notes = found({"var/lib/dpkg/status": DPKG})
    assert packages == [("dpkg", "libc6", "2.36-9+deb12u4", "amd64")]
    assert notes == ()


def test_distroless_images_have_a_file_for_each_package() -> None:
    files = {
        "var/lib/dpkg/status.d/base": b"Package: base-files\nVersion: 12.4\nArchitecture: amd64\n",
        "var/lib/dpkg/status.d/base.md5sums": b"0  Package: x\n",
    }
    packages, _ = found(files, {"var/lib/dpkg/status.d": ["base", "base.md5sums"]})
    assert packages == [("dpkg", "base-files", "12.4", "amd64")]


def test_apk() -> None:
    packages, _ = found({"lib/apk/db/installed": APK})
    assert packages == [
        ("apk", "busybox", "1.36.1-r5", "x86_64"),
        ("apk", "musl", "1.2.4-r2", "x86_64"),
    ]


def test_rpm_in_sqlite_with_and_without_an_epoch() -> None:
    data = rpm_database(
        [
            rpm_header({1000: "bash", 1001: "5.2", 1002: "1.fc39", 1022: "x86_64"}),
            rpm_header({1000: "shadow", 1001: "4", 1002: "2", 1003: 2, 1022: "x86_64"}),
            rpm_header({1000: "gpg-pubkey", 1001: "1", 1002: "1"}),
        ]
    )
    for journal in (data, data[:18] + b"\x02\x02" + data[20:]):
        packages, notes = found({"usr/lib/sysimage/rpm/rpmdb.sqlite": journal})
        assert packages == [
            ("rpm", "bash", "5.2-1.fc39", "x86_64"),
            ("rpm", "shadow", "2:4-2", "x86_64"),
        ]
        assert notes == ()


def test_rpm_databases_that_are_damaged_or_of_another_kind_are_a_note() -> None:
    good = rpm_database([rpm_header({1000: "bash", 1001: "5", 1002: "1"})])
    for damaged in (b"SQLite format 3\0" + b"x" * 5000, good[:3000], rpm_database([b"short"])):
        packages, notes = found({"var/lib/rpm/rpmdb.sqlite": damaged})
        assert packages == []
        assert "damaged" in notes[0]
    _, notes = found({}, {"var/lib/rpm": ["Packages"]})
    assert "not of the kind" in notes[0]


def test_what_is_not_text_is_no_fault_and_texts_are_bounded() -> None:
    status = b"Package: " + b"n" * 5000 + b"\nVersion: \xff\x1b[31m\n"
    ((_, name, version, _),), _ = found({"var/lib/dpkg/status": status})
    assert len(name) == 256
    assert version == "\ufffd?[31m"


def test_more_than_fit_are_counted() -> None:
    status = b"\n\n".join(b"Package: p%d\nVersion: 1" % n for n in range(MAX_PACKAGES + 5))
    packages, notes = found({"var/lib/dpkg/status": status})
    assert len(packages) == MAX_PACKAGES
    assert str(MAX_PACKAGES + 5) in notes[0]
