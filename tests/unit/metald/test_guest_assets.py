from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ironworks.metald import guest_assets, store
from ironworks.metald.guest_assets import LOOK_AGAIN_SECONDS, GuestAssets
from ironworks.model.errors import FailedPrecondition, Unavailable
from ironworks.model.ids import derived_id
from ironworks.testkit.clock import FakeClock
from ironworks.testkit.metald import World, world


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def w(tmp_path: Path, clock: FakeClock) -> AsyncGenerator[World]:
    async with world(tmp_path, clock=clock) as made:
        yield made


def built(monkeypatch: pytest.MonkeyPatch, kernel: str | None) -> None:
    guest = None
    if kernel is not None:
        guest = SimpleNamespace(
            directory=Path("/guest"),
            kernel=SimpleNamespace(name="vmlinuz", sha256=kernel),
            initrd=SimpleNamespace(name="initrd.img", sha256="i"),
        )

    def find(_directory: Path) -> SimpleNamespace | None:
        return guest

    monkeypatch.setattr(guest_assets, "find", find)


async def test_the_built_guest_becomes_the_hosts_default_once(
    w: World, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(monkeypatch, "k1")
    reconciler = GuestAssets(w.context)
    assert (await reconciler.activate()).counts == {"registered": 2}
    assert (await reconciler.activate()).counts == {}
    await clock.advance(LOOK_AGAIN_SECONDS)
    assert (await reconciler.activate()).counts == {"registered": 0}
    host = await w.context.db.read(store.read_host)
    assert host == w.context.host
    assert host is not None
    assert host.default_kernel_asset_id == derived_id("ast", "kernel", "k1")
    assert host.default_initrd_asset_id == derived_id("ast", "initrd", "i")
    built(monkeypatch, "k2")
    await clock.advance(LOOK_AGAIN_SECONDS)
    assert (await reconciler.activate()).counts == {"registered": 2}
    assert w.context.host.default_kernel_asset_id == derived_id("ast", "kernel", "k2")


async def test_without_a_guest_it_says_what_to_run(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(monkeypatch, None)
    with pytest.raises(FailedPrecondition, match="no guest kernel") as error:
        await GuestAssets(w.context).activate()
    assert "setup" in error.value.hint


async def test_assetmanagerd_down_is_tried_again(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    built(monkeypatch, "k1")
    reconciler = GuestAssets(w.context)
    w.lessor.down = Unavailable("down")
    with pytest.raises(Unavailable):
        await reconciler.activate()
    w.lessor.down = None
    assert (await reconciler.activate()).counts == {"registered": 2}


async def test_a_driver_without_a_kernel_needs_no_guest(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(monkeypatch, None)
    probe = w.context.probe
    bare = replace(probe, capabilities=replace(probe.capabilities, needs_kernel=False))
    w.context.probes = {probe.kind: bare}
    assert (await GuestAssets(w.context).activate()).counts == {}
