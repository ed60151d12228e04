"""List the packages that an image's own databases declare. Pure: bytes in, packages out.

dpkg: `/var/lib/dpkg/status` and `status.d` (distroless images). apk: `/lib/apk/db/installed`, and
`/usr/lib/apk/db/installed`. rpm: `rpmdb.sqlite` (Fedora 33, RHEL 9, openSUSE 15.5 and later); the
older Berkeley and ndb databases are not read, and a note says so.
Source: deb-control(5), apk-tools "db format", rpm "Package Header Format".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from ironworks.builderd.flatten.plan import MAX_PACKAGES, Package

_MAX_STATUS_FILES = 5000
_MAX_TEXT_CHARS = 256
_DPKG = b"var/lib/dpkg/status"
_DPKG_PARTS = b"var/lib/dpkg/status.d"
_APK = (b"lib/apk/db/installed", b"usr/lib/apk/db/installed")
_RPM_DIRECTORIES = (b"usr/lib/sysimage/rpm", b"var/lib/rpm")
_RPM_OLD = (b"Packages", b"Packages.db")
_RPM_MAGIC = 8
_NAME, _VERSION, _RELEASE, _EPOCH, _ARCHITECTURE = 1000, 1001, 1002, 1003, 1022
_INT32, _STRING = 4, 6
_MAX_INDEX = 65_536

Read = Callable[[bytes], bytes | None]
"""Path in the image → content; None: no such file, or it is too large."""
List = Callable[[bytes], Iterable[bytes]]
"""Path in the image → names in that directory."""


def find_packages(read: Read, names: List) -> tuple[tuple[Package, ...], tuple[str, ...]]:
    """Packages, sorted and at most 10,000; and notes about what could not be listed."""
    notes: list[str] = []
    found = {*_dpkg(read, names), *_apk(read), *_rpm(read, names, notes)}
    packages = sorted(found, key=lambda one: (one.manager, one.name, one.version, one.architecture))
    if len(packages) > MAX_PACKAGES:
        notes.append(
            f"The image declares {len(packages)} packages; the first {MAX_PACKAGES} are listed."
        )
    return tuple(packages[:MAX_PACKAGES]), tuple(notes)


def _package(manager: str, name: str, version: str, architecture: str) -> Package:
    return Package(
        manager=manager,
        name=name[:_MAX_TEXT_CHARS],
        version=version[:_MAX_TEXT_CHARS],
        architecture=architecture[:_MAX_TEXT_CHARS],
    )


def _text(data: bytes) -> str:
    return "".join(
        char if char.isprintable() or char == "\n" else "?"
        for char in data.decode("utf-8", "replace")
    )


# --- dpkg -----------------------------------------------------------------------------------------


def _dpkg(read: Read, names: List) -> Iterator[Package]:
    parts = sorted(names(_DPKG_PARTS))[:_MAX_STATUS_FILES]
    for path in (_DPKG, *(_DPKG_PARTS + b"/" + part for part in parts)):
        data = read(path)
        if data is None or path.endswith(b".md5sums"):
            continue
        for paragraph in _text(data).split("\n\n"):
            fields = _fields(paragraph, ": ")
            # A status file of `status.d` has no Status: what is there is installed.
            state = fields.get("Status", "install ok installed")
            if "Package" in fields and state.endswith(" installed"):
                yield _package(
                    "dpkg", fields["Package"], fields.get("Version", ""),
                    fields.get("Architecture", ""),
                )  # fmt: skip


def _fields(paragraph: str, separator: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in paragraph.splitlines():
        name, found, value = line.partition(separator)
        if found and not name.startswith(" "):
            fields.setdefault(name, value.strip())
    return fields


# --- apk ------------------------------------------------------------------------------------------


def _apk(read: Read) -> Iterator[Package]:
    for path in _APK:
        data = read(path)
        for paragraph in _text(data or b"").split("\n\n"):
            fields = _fields(paragraph, ":")
            if "P" in fields:
                yield _package("apk", fields["P"], fields.get("V", ""), fields.get("A", ""))


# --- rpm ------------------------------------------------------------------------------------------


def _rpm(read: Read, names: List, notes: list[str]) -> Iterator[Package]:
    for directory in _RPM_DIRECTORIES:
        there = set(names(directory))
        data = read(directory + b"/rpmdb.sqlite")
        if data:
            try:
                yield from _rpm_rows(data)
            except (struct.error, ValueError):
                notes.append("The image's rpm database is damaged; its packages are not listed.")
            return
        if there.intersection(_RPM_OLD):
            notes.append(
                "The image's rpm database is not of the kind that is read here (sqlite); its "
                "packages are not listed."
            )
            return


def _rpm_rows(data: bytes) -> list[Package]:
    import sqlite3  # noqa: PLC0415 - few images need it, and the process is short

    if data[18:20] == b"\x02\x02":
        # Write-ahead mode needs files beside it; what is in the main file is read without.
        data = data[:18] + b"\x01\x01" + data[20:]
    with closing(sqlite3.connect(":memory:")) as database:
        try:
            database.deserialize(data)
            found = database.execute("SELECT blob FROM Packages LIMIT ?", (MAX_PACKAGES + 1,))
            rows = found.fetchall()
        except sqlite3.Error as error:
            raise ValueError(str(error)) from error
        return [package for (blob,) in rows if (package := _rpm_header(bytes(blob))) is not None]


def _rpm_header(blob: bytes) -> Package | None:
    count, length = struct.unpack_from(">II", blob)
    start = _RPM_MAGIC + 16 * count
    if count > _MAX_INDEX or start + length > len(blob):
        raise ValueError(count)
    values: dict[int, str] = {}
    for index in range(count):
        tag, kind, offset, _ = struct.unpack_from(">IIiI", blob, _RPM_MAGIC + 16 * index)
        at = start + offset
        if tag == _EPOCH and kind == _INT32:
            values[tag] = str(struct.unpack_from(">I", blob, at)[0])
        elif tag in (_NAME, _VERSION, _RELEASE, _ARCHITECTURE) and kind == _STRING and offset >= 0:
            values[tag] = _text(blob[at : blob.index(b"\0", at)])
    name = values.get(_NAME, "")
    if not name or name == "gpg-pubkey":  # keys stand among packages
        return None
    epoch = f"{values[_EPOCH]}:" if _EPOCH in values else ""
    version = f"{epoch}{values.get(_VERSION, '')}-{values.get(_RELEASE, '')}"
    return _package("rpm", name, version, values.get(_ARCHITECTURE, ""))
