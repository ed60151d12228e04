"""The jail's programs are compiled once, and again when anything of them changes."""

import subprocess
from pathlib import Path

import pytest

from ironworks.metald.jail.programs import build
from ironworks.model.errors import FailedPrecondition


async def test_a_program_is_built_once_for_each_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.c"
    source.write_text("int main(void) { return ANSWER; }\n")
    seven = await build(tmp_path, source, name="answer", header="#define ANSWER 7\n")
    eight = await build(tmp_path, source, name="answer", header="#define ANSWER 8\n")
    assert [subprocess.run([path], check=False).returncode for path in (seven, eight)] == [7, 8]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await build(tmp_path, source, name="answer", header="#define ANSWER 8\n") == eight
    with pytest.raises(FailedPrecondition):
        await build(tmp_path, source, name="answer", header="#define ANSWER 9\n")
    assert len(list(tmp_path.iterdir())) == 3


async def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    source = tmp_path / "source.c"
    source.write_text("int main(void) { return ANSWER; }\n")
    with pytest.raises(FailedPrecondition, match="answer of VMMs does not compile") as caught:
        await build(tmp_path, source, name="answer")
    assert "ANSWER" in caught.value.hint
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        await build(source / "below", source, name="answer")
