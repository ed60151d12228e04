"""Which platform a command uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.cli.options import Options
from ironworks.model.errors import FailedPrecondition


def test_the_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRONWORKS_API_URL", "https://other.test")
    monkeypatch.setenv("IRONWORKS_API_KEY", "iwk_other")
    client = Options(url="https://127.0.0.1:1").client()
    assert client.configuration.url == "https://127.0.0.1:1"
    assert client.configuration.api_key == ""


def test_a_data_directory_without_a_platform(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="No platform runs over"):
        Options(data_dir=tmp_path).client()
