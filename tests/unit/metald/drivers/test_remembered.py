"""What was found out about the host."""

from pathlib import Path

import pytest

from ironworks.metald.drivers.remembered import recall, remember


def test_facts_hold_under_their_key_only(tmp_path: Path) -> None:
    path = tmp_path / "state/facts.json"
    assert recall(path, "boot 1") is None
    remember(path, "boot 1", {"works": True})
    assert recall(path, "boot 1") == {"works": True}
    assert recall(path, "boot 2") is None
    remember(path, "boot 2", {"works": False})
    assert recall(path, "boot 2") == {"works": False}
    assert [one.name for one in path.parent.iterdir()] == ["facts.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"works": true}'])
def test_what_cannot_be_read_is_found_out_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(content)
    assert recall(path, "boot 1") is None
