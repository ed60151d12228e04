from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from ironworks.model.errors import InvalidRequest
from ironworks.runtime.identity import SERVICES
from ironworks.runtime.settings import DEFAULT_DATA_DIR, SETTINGS_FILE, Settings, load


class WithLimit(Settings):
    vm_limit: int = Field(default=8, ge=1, le=100)


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IRONWORKS_DATA_DIR", str(tmp_path))
    return tmp_path


def write(data_dir: Path, text: str) -> None:
    (data_dir / SETTINGS_FILE).write_text(text)


def test_without_anything_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IRONWORKS_DATA_DIR")
    assert Settings().data_dir == DEFAULT_DATA_DIR


def test_the_file_wins_over_defaults_the_environment_over_it_and_arguments_over_all(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(WithLimit).vm_limit == 8
    write(data_dir, "vm_limit = 9\n")
    assert load(WithLimit).vm_limit == 9
    monkeypatch.setenv("IRONWORKS_VM_LIMIT", "10")
    assert load(WithLimit).vm_limit == 10
    assert WithLimit(vm_limit=11).vm_limit == 11


def test_a_data_directory_given_as_an_argument_is_where_the_file_is_read(
    data_dir: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, 'domain = "there.example"\n')
    assert Settings(data_dir=elsewhere).domain == "there.example"
    assert Settings(data_dir=data_dir).domain == "ironworks.localhost"


def test_one_file_serves_all_services(data_dir: Path) -> None:
    write(data_dir, "asset_ttl_seconds = 3600\nmax_vms = 3\n")
    assert load(Settings).domain == "ironworks.localhost"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("asset_ttl_second = 1", r"not: asset_ttl_second\. Instead of .*: asset_ttl_seconds\?"),
        ('LOG_LEVEL = "INFO"', r"not: LOG_LEVEL\. Instead of LOG_LEVEL: log_level\?"),
        ("[zzz]\nvm_limit = 9", r"not: zzz\. docs/reference/settings\.md lists"),
    ],
)
def test_a_name_that_no_service_knows_is_refused(data_dir: Path, text: str, reason: str) -> None:
    write(data_dir, text)
    with pytest.raises(InvalidRequest, match=f"{data_dir / SETTINGS_FILE} has .*{reason}"):
        load(WithLimit)


@pytest.mark.parametrize("text", ["vm_limit = 0", "vm_limit = 101", 'vm_limit = "many"'])
def test_a_value_out_of_bounds_is_named(data_dir: Path, text: str) -> None:
    write(data_dir, text)
    with pytest.raises(InvalidRequest, match=r"not valid: vm_limit: .*Correct IRONWORKS_"):
        load(WithLimit)


@pytest.mark.parametrize("content", [b"= = =", b"\xff\xfe", b"vm_limit = 1\nvm_limit = 2"])
def test_a_file_that_is_not_toml_is_one_clear_sentence(data_dir: Path, content: bytes) -> None:
    (data_dir / SETTINGS_FILE).write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"cannot be read.*Correct or remove the file"):
        load(WithLimit)


@pytest.mark.parametrize("level", ["debug", "TRACE", "XINFOX", "INFO\n", ""])
def test_only_levels_that_the_log_knows_are_taken(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.setenv("IRONWORKS_LOG_LEVEL", level)
    with pytest.raises(InvalidRequest, match="log_level"):
        load(Settings)


def test_settings_do_not_change_under_a_running_service() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.domain = "other"


def test_every_service_has_a_url_of_its_own() -> None:
    settings = Settings()
    urls = [settings.url_of(service) for service in SERVICES]
    assert len(set(urls)) == len(SERVICES)


@pytest.mark.parametrize("service", ["nope", "", "model_config"])
def test_the_url_of_no_service_is_refused(service: str) -> None:
    with pytest.raises(InvalidRequest, match="no service"):
        Settings().url_of(service)
