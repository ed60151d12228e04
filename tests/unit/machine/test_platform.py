from __future__ import annotations

import os
from pathlib import Path

import pytest

from ironworks.machine import platform
from ironworks.machine.platform import AlreadyRuns
from ironworks.machine.ports import DEFAULT_PORTS
from ironworks.model.errors import NotFound, PermissionDenied
from ironworks.runtime.identity import SERVICES
from ironworks.runtime.settings import Settings


def test_one_platform_a_data_directory(tmp_path: Path) -> None:
    with platform.data_dir_lock(tmp_path):
        with pytest.raises(AlreadyRuns, match=r"already runs over .*iron down"):
            with platform.data_dir_lock(tmp_path):
                pytest.fail("two platforms share a directory")
        with platform.data_dir_lock(tmp_path / "other"):
            pass
    with platform.data_dir_lock(tmp_path):
        pass


def test_only_what_the_operator_set_is_wanted(tmp_path: Path) -> None:
    assert platform.wanted_ports(Settings(data_dir=tmp_path)) == {}
    settings = Settings(data_dir=tmp_path, edge_port=443, metald_url="http://127.0.0.1:9000")
    assert platform.wanted_ports(settings) == {"edge": 443, "metald": 9000}


def test_every_service_is_told_where_the_others_are(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    told = platform.environment(settings, DEFAULT_PORTS)
    read = Settings(
        **{
            name.removeprefix("IRONWORKS_").lower(): value
            for name, value in told.items()
            if name.startswith("IRONWORKS_")
        }  # pyright: ignore[reportArgumentType] - as the environment gives them
    )
    assert read.data_dir == tmp_path
    assert read.edge_port == DEFAULT_PORTS["edge"]
    for service in SERVICES:
        assert read.url_of(service) == f"http://127.0.0.1:{DEFAULT_PORTS[service]}"


def test_six_services_and_envoy_which_waits_for_its_file(tmp_path: Path) -> None:
    bootstrap = tmp_path / "gatewayd" / "envoy" / "bootstrap.json"
    bootstrap.parent.mkdir(parents=True)
    bootstrap.write_text("of an earlier run")
    env = platform.environment(Settings(data_dir=tmp_path), DEFAULT_PORTS)
    children = platform.children(env)
    assert sorted(child.name for child in children) == sorted((*SERVICES, platform.ENVOY))
    assert children[-1].needs_file == bootstrap
    assert not bootstrap.exists()


def test_no_platform_runs_where_there_is_no_file_or_a_damaged_one(tmp_path: Path) -> None:
    path = platform.platform_file_path(tmp_path)
    with pytest.raises(NotFound, match=r"No platform runs over .*iron up"):
        platform.read_platform_file(tmp_path)
    path.parent.mkdir()
    for damaged in ("", "[]", "{}", '{"pid": 1}'):
        path.write_text(damaged)
        with pytest.raises(NotFound):
            platform.read_platform_file(tmp_path)


def test_ports_of_a_damaged_file_are_forgotten(tmp_path: Path) -> None:
    assert platform.ports_before(tmp_path) == {}
    (tmp_path / "run").mkdir()
    for text, ports in (("{", {}), ("[1]", {}), ('{"edge": 5000, "x": "y"}', {"edge": 5000})):
        (tmp_path / "run" / platform.PORTS_FILE).write_text(text)
        assert platform.ports_before(tmp_path) == ports


async def test_what_is_missing_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied, match="needs root"):
        await platform.run(Settings(data_dir=tmp_path / "new"), on_ready=lambda _: None)
    assert not (tmp_path / "new").exists()
