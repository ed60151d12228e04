from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.machine import doctor


def test_every_check_is_made_whatever_the_others_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = {one.check: one for one in doctor.checks(tmp_path, tmp_path / "no-guest")}
    assert list(found) == ["root", "programs", "disk", "guest kernel"]
    assert "qemu-system-x86_64" in found["programs"].problem
    assert "apt-get install" in found["programs"].hint
    assert "no guest kernel" in found["guest kernel"].problem
    assert found["disk"].problem == ""
