"""`iron build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ironworks.gen.ironworks.builderd.v1 import build_pb
from ironworks.testkit.fakebuilds import CANCELLED_IMAGE, FAILING_IMAGE, MADE_ID
from ironworks.testkit.fakenouns import ASSET_ID, BUILD_ID, LOG_LINES

if TYPE_CHECKING:
    from conftest import Iron


async def test_list(iron: Iron) -> None:
    done = await iron("build", "list")
    for shown in (BUILD_ID, ASSET_ID, "completed", "1.0 s"):
        assert shown in done.out
    assert (await iron("build", "list", "--json")).json["builds"][0]["image"] == "oci:/x"


async def test_get(iron: Iron) -> None:
    done = await iron("build", "get", BUILD_ID)
    for shown in ("80.0 MiB", "4321 entries, 190.0 MiB, of 5 layers", "building", "600 ms"):
        assert shown in done.out
    await iron("build", "get", "bld_none", status=66)


async def test_logs(iron: Iron) -> None:
    done = await iron("build", "logs", BUILD_ID, "--follow")
    shown = done.out.splitlines()
    assert len(shown) == len(LOG_LINES)
    assert shown[0].endswith(f"building    {LOG_LINES[0]}")
    as_json = await iron("build", "logs", BUILD_ID, "--json")
    texts = [json.loads(line)["text"] for line in as_json.out.splitlines()]
    assert texts == list(LOG_LINES)


async def test_build_waits_for_the_end_and_says_it(iron: Iron) -> None:
    done = await iron("build", "docker.io/library/app", "--label", "team=web", "--format", "ext4")
    assert MADE_ID in done.out
    assert "completed" in done.out
    assert LOG_LINES[0] in done.err
    request = iron.api.asked["CreateBuild"][-1]
    assert isinstance(request, build_pb.CreateBuildRequest)
    assert dict(request.labels) == {"team": "web"}
    as_json = await iron("build", "docker.io/library/app", "--detach", "--json")
    assert as_json.json["build_id"] == MADE_ID


async def test_a_build_that_failed_or_was_cancelled_is_an_error(iron: Iron) -> None:
    failed = await iron("build", FAILING_IMAGE, status=66)
    assert "There is no image" in failed.err
    cancelled = await iron("build", CANCELLED_IMAGE, status=75)
    assert "was cancelled" in cancelled.err


async def test_an_image_on_this_machine_is_uploaded(iron: Iron, tmp_path: Path) -> None:
    iron.patch.chdir(tmp_path)
    (tmp_path / "app.tar").write_bytes(b"x" * 2000)
    for written in ("./app.tar", "docker-archive:app.tar", str(tmp_path / "app.tar")):
        await iron("build", written)
        request = iron.api.asked["CreateBuild"][-1]
        assert isinstance(request, build_pb.CreateBuildRequest)
        assert request.image.startswith("upload:upl_")
    await iron("build", "./none.tar", status=66)


async def test_cancel_delete_and_figures(iron: Iron) -> None:
    assert "cancelled" in (await iron("build", "cancel", BUILD_ID)).out
    assert BUILD_ID in (await iron("build", "delete", BUILD_ID)).out
    assert "7, and 3 built before" in (await iron("build", "stats")).out
    assert "1 of 2" in (await iron("build", "quota")).out
    assert "no packages" in (await iron("build", "packages", BUILD_ID)).err
    assert (await iron("build", "packages", BUILD_ID, "--json")).json["packages"] == []
