"""Which platform, with which key: the order of the sources; keys stay with their platform."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.sdk.configuration import Configuration, config_file, discover, is_loopback, save

ARGUMENT, ENVIRONMENT, FILE, MACHINE = (f"https://{n}.test:1" for n in ("arg", "env", "file", "m"))


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "IRONWORKS_DATA_DIR": str(tmp_path / "data")}


def write_file(environ: dict[str, str]) -> None:
    configuration = Configuration(url=FILE, api_key="iwk_file", ca_file=Path("/file.pem"))
    save(configuration, config_file(environ))


def write_machine(data_dir: Path) -> None:
    (data_dir / "run").mkdir(parents=True)
    (data_dir / "gatewayd").mkdir()
    platform = {"pid": 1, "api_url": MACHINE, "ca_file": "/m.pem"}
    (data_dir / "run" / "platform.json").write_text(json.dumps(platform))
    (data_dir / "gatewayd" / "operator.key").write_text("iwk_machine\n")


def test_the_order_of_the_sources(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="iron login"):
        discover(environ=environ)
    write_machine(tmp_path / "data")
    assert discover(environ=environ) == Configuration(
        url=MACHINE, api_key="iwk_machine", ca_file=Path("/m.pem")
    )
    write_file(environ)
    assert discover(environ=environ) == Configuration(
        url=FILE, api_key="iwk_file", ca_file=Path("/file.pem")
    )
    environ |= {"IRONWORKS_API_URL": ENVIRONMENT, "IRONWORKS_API_KEY": "iwk_env"}
    assert discover(environ=environ) == Configuration(url=ENVIRONMENT, api_key="iwk_env")
    found = discover(ARGUMENT, "iwk_arg", "/arg.pem", environ=environ)
    assert found == Configuration(url=ARGUMENT, api_key="iwk_arg", ca_file=Path("/arg.pem"))


def test_a_key_is_never_sent_to_another_platform(environ: dict[str, str], tmp_path: Path) -> None:
    write_machine(tmp_path / "data")
    write_file(environ)
    found = discover(ARGUMENT, environ=environ)
    assert (found.url, found.api_key, found.ca_file) == (ARGUMENT, "", None)


def test_a_key_without_a_url_goes_with_the_url_that_is_found(
    environ: dict[str, str], tmp_path: Path
) -> None:
    write_machine(tmp_path / "data")
    found = discover(environ={**environ, "IRONWORKS_API_KEY": "iwk_mine"})
    assert found == Configuration(url=MACHINE, api_key="iwk_mine", ca_file=Path("/m.pem"))


def test_a_data_directory_wins_over_the_environment(
    environ: dict[str, str], tmp_path: Path
) -> None:
    environ |= {"IRONWORKS_API_URL": ENVIRONMENT}
    write_machine(tmp_path / "other")
    assert discover(data_dir=tmp_path / "other", environ=environ).url == MACHINE
    with pytest.raises(FailedPrecondition, match="No platform runs over"):
        discover(data_dir=tmp_path / "empty", environ=environ)


def test_the_file_is_for_its_owner_only_and_survives_odd_characters(
    environ: dict[str, str],
) -> None:
    odd = Configuration(url=FILE, api_key='iwk_"\\\n', ca_file=Path("/ä b.pem"))
    save(odd, config_file(environ))
    assert config_file(environ).stat().st_mode & 0o777 == 0o600
    assert discover(environ=environ) == odd


def test_a_damaged_file_is_named(environ: dict[str, str]) -> None:
    path = config_file(environ)
    path.parent.mkdir(parents=True)
    path.write_text("url = ")
    with pytest.raises(InvalidRequest, match=r"config\.toml cannot be read"):
        discover(environ=environ)


@pytest.mark.parametrize("url", ["ftp://x", "https://", "platform", "https://x/path"])
def test_what_is_no_address_is_refused(url: str, environ: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="not the address"):
        discover(url, environ=environ)


def test_a_key_does_not_cross_a_network_in_the_clear(environ: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="https only"):
        discover("http://platform.test:8443", environ=environ)
    assert discover("http://127.0.0.1:8443", environ=environ).is_local


def test_the_key_is_not_in_the_representation(environ: dict[str, str]) -> None:
    assert "iwk_secret" not in repr(discover(ARGUMENT, "iwk_secret", environ=environ))


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("a.ironworks.localhost", True),
     ("10.0.0.1", False), ("localhost.example.com", False), ("notlocalhost", False)],
)  # fmt: skip
def test_what_is_this_machine(host: str, *, local: bool) -> None:
    assert is_loopback(host) is local
