"""The built guest, and rooms for VMs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ironworks.metald.guest.build import DEFAULT_DIR, Guest, build_now
from ironworks.model.errors import IronError
from ironworks.testkit.rooms import Room, make_room, make_rootfs


@pytest.fixture(scope="session")
def guest() -> Guest:
    built = build_now(DEFAULT_DIR)
    if isinstance(built, IronError):
        raise built
    return built


@pytest.fixture(scope="session")
def squashfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("squashfs"))


@pytest.fixture
def room(tmp_path: Path, guest: Guest, squashfs: Path) -> Iterator[Room]:
    with make_room(tmp_path, guest, squashfs) as made:
        yield made
