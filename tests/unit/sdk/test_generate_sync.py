"""The synchronous face is what its generator writes."""

from __future__ import annotations

from ironworks.sdk.generate_sync import TARGET, render


def test_the_committed_files_are_current() -> None:
    assert {path.name: path.read_text() for path in TARGET.glob("*.py")} == render()
