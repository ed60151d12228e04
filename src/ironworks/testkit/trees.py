"""Read whole trees, to compare them: a directory's, a squashfs's, an ext4's; nothing is mounted.

A tree is: path → what an image says of it. `.` is the root.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from ironworks.model.errors import Internal

Tree = dict[str, dict[str, object]]

_LISTED = re.compile(rb"/(\d+)/(\d+)/(\d+)/(\d+)/([^/]*)/(\d*)/\n")
_MTIME = re.compile(r"^ mtime: 0x([0-9a-f]+):([0-9a-f]+) ", re.MULTILINE)
_DEVICE = re.compile(r"^(?:\(New-style\) )?Device major/minor number: (\d+):(\d+)", re.MULTILINE)
_FAST_LINK = re.compile(r'^Fast link dest: "(.*)"$', re.MULTILINE | re.DOTALL)
_XATTR = re.compile(r"^  ([a-z]+\.\S+) \((\d+)\)", re.MULTILINE)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree_of_directory(root: Path) -> Tree:
    """Everything of a directory that an image can say; reads owners and devices, so as root."""
    found: Tree = {}
    inodes: dict[int, str] = {}
    paths = [root]
    for above, directories, files in os.walk(root):
        paths += [Path(above) / name for name in (*directories, *files)]
    for path in sorted(paths, key=os.fsencode):
        info = path.lstat()
        name = str(path.relative_to(root))
        one: dict[str, object] = {
            "mode": oct(info.st_mode),
            "owner": (info.st_uid, info.st_gid),
            "mtime": int(info.st_mtime // 1),
            "xattrs": {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            },
        }
        if stat.S_ISREG(info.st_mode):
            one["content"] = _digest(path.read_bytes())
            one["same as"] = inodes.setdefault(info.st_ino, name)
        elif stat.S_ISLNK(info.st_mode):
            one["target"] = os.fsencode(path.readlink())
        elif stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
            one["device"] = (os.major(info.st_rdev), os.minor(info.st_rdev))
        found[name] = one
    return found


def tree_of_squashfs(image: Path, place: Path) -> Tree:
    """Unpack a squashfs into the new directory `place`, as root."""
    command = ["unsquashfs", "-q", "-n", "-d", str(place), str(image)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise Internal("unsquashfs failed.", context={"said": done.stderr + done.stdout})
    return tree_of_directory(place)


def tree_of_ext4(image: Path, place: Path) -> Tree:
    """Read an ext4 with debugfs; `place`, a new directory, takes its contents by inode."""
    place.mkdir()
    reader = _Ext4(image, place)
    return reader.tree()


class _Ext4:
    def __init__(self, image: Path, place: Path) -> None:
        self._image = image
        self._place = place

    def _ask(self, commands: Iterable[str]) -> list[bytes]:
        """What debugfs answers to each command."""
        wanted = list(commands)
        script = self._place / "commands"
        script.write_text("\n".join([*wanted, ""]))
        command = ["debugfs", "-f", str(script), str(self._image)]
        said = subprocess.run(command, check=True, capture_output=True).stdout
        answers: list[bytes] = []
        for asked in wanted:
            echo = f"debugfs: {asked}\n".encode()
            if not said.startswith(echo):
                raise Internal("debugfs answered out of turn.", context={"said": said[:500]})
            said = said[len(echo) :]
            end = said.find(b"debugfs: ")
            answers.append(said if end < 0 else said[:end])
            said = b"" if end < 0 else said[end:]
        return answers

    def tree(self) -> Tree:
        names = self._names()
        numbers = sorted(set(names.values()))
        told = dict(zip(numbers, self._ask(f"stat <{one}>" for one in numbers), strict=True))
        first: dict[int, str] = {}
        found: Tree = {}
        for name in sorted(names, key=os.fsencode):
            number = names[name]
            first.setdefault(number, name)
            found[name] = self._entry(number, told[number].decode("utf-8", "surrogateescape"))
            if "content" in found[name]:
                found[name]["same as"] = first[number]
        return found

    def _names(self) -> dict[str, int]:
        names = {".": 2}
        waiting = [("", 2)]
        while waiting:
            answers = self._ask(f"ls -p <{number}>" for _, number in waiting)
            deeper: list[tuple[str, int]] = []
            for (above, _), listing in zip(waiting, answers, strict=True):
                for number, mode, _, _, raw, _ in _LISTED.findall(listing):
                    if raw in (b".", b".."):
                        continue
                    name = above + os.fsdecode(raw)
                    names[name] = int(number)
                    if stat.S_ISDIR(int(mode, 8)):
                        deeper.append((f"{name}/", int(number)))
            waiting = deeper
        return names

    def _entry(self, number: int, told: str) -> dict[str, object]:
        kind, mode = re.findall(r"Type: (.+?)\s+Mode:\s+(\d+)", told)[0]
        user, group = re.findall(r"^User:\s+(\d+)\s+Group:\s+(\d+)", told, re.MULTILINE)[0]
        low, extra = (int(one, 16) for one in _MTIME.findall(told)[0])
        seconds = (low - (1 << 32) if low >> 31 else low) + ((extra & 3) << 32)
        kinds = {
            "regular": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK,
            "FIFO": stat.S_IFIFO, "block special": stat.S_IFBLK, "character special": stat.S_IFCHR,
        }  # fmt: skip
        entry: dict[str, object] = {
            "mode": oct(kinds[kind] | int(mode, 8)),
            "owner": (int(user), int(group)),
            "mtime": seconds,
            "xattrs": {key: self._xattr(number, key) for key, _ in _XATTR.findall(told)},
        }
        if kind == "regular":
            entry["content"] = _digest(self._content(number))
        elif kind == "symlink":
            fast = _FAST_LINK.findall(told)
            entry["target"] = os.fsencode(fast[0]) if fast else self._content(number)
        elif kind.endswith("special"):
            major, minor = _DEVICE.findall(told)[0]
            entry["device"] = (int(major), int(minor))
        return entry

    def _content(self, number: int) -> bytes:
        target = self._place / str(number)
        if not target.exists():
            self._ask([f"dump <{number}> {target}"])
        return target.read_bytes()

    def _xattr(self, number: int, name: str) -> bytes:
        target = self._place / f"{number}.xattr"
        self._ask([f"ea_get -f {target} <{number}> {name}"])
        return target.read_bytes()
