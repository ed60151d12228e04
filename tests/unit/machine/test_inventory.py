"""What of a platform is on this host is read from the kernel, and is of that platform only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ironworks.machine import inventory
from ironworks.machine.inventory import Item
from ironworks.runtime.settings import tag_of

SLEEP = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]


@contextmanager
def process(env: dict[str, str], *argv: str) -> Generator[int]:
    with subprocess.Popen([*SLEEP, *argv], env=env, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield running.pid
        running.kill()


async def kinds(data_dir: Path) -> set[str]:
    return {item.kind for item in await inventory.take(data_dir)}


async def test_nothing_is_there_before_anything_was_made(tmp_path: Path) -> None:
    assert await inventory.take(tmp_path) == frozenset()


async def test_a_process_is_known_by_its_environment_or_its_arguments(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with process({"IRONWORKS_DATA_DIR": str(tmp_path)}) as pid:
        (found,) = await inventory.take(tmp_path)
        assert (found.kind, found.name.split()[0]) == ("process", str(pid))
        assert await kinds(other) == set()
    with process({}, f"{tmp_path}/jails/x"):
        assert await kinds(tmp_path) == {"process"}
        assert await kinds(other) == set()
    assert await kinds(tmp_path) == set()


async def test_jails_are_found(tmp_path: Path) -> None:
    (tmp_path / "jails" / "vm_a").mkdir(parents=True)
    assert await inventory.take(tmp_path) == {Item("jail", str(tmp_path / "jails" / "vm_a"))}


@pytest.mark.root
async def test_links_and_namespaces_are_found_by_the_tag_of_the_directory(tmp_path: Path) -> None:
    tag = tag_of(tmp_path)
    netns, link = f"iw-{tag}-00001", f"iw{tag}v00001"
    subprocess.run(["ip", "netns", "add", netns], check=True)
    try:
        subprocess.run(
            ["ip", "link", "add", link, "type", "veth", "peer", "name", "x", "netns", netns],
            check=True,
        )
        assert await inventory.take(tmp_path) == {Item("link", link), Item("namespace", netns)}
        assert await inventory.take(tmp_path / "other") == frozenset()
    finally:
        subprocess.run(["ip", "netns", "delete", netns], check=True)
    assert await inventory.take(tmp_path) == frozenset()


@pytest.mark.root
async def test_mounts_below_the_directory_are_found(tmp_path: Path) -> None:
    point = tmp_path / "m"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
    try:
        assert await inventory.take(tmp_path) == {Item("mount", str(point))}
    finally:
        subprocess.run(["umount", str(point)], check=True)
