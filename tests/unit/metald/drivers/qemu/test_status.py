"""Pid and exit status of QEMU, as bubblewrap and the keeper tell them."""

from pathlib import Path

import pytest

from ironworks.metald.drivers.qemu.status import read_status_file, vmm_status


@pytest.mark.parametrize(("keeper", "status"), [(None, None), (0, 0), (3, 3), (137, -9)])
def test_signals_are_told_apart_from_statuses(keeper: int | None, status: int | None) -> None:
    assert vmm_status(keeper) == status


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (None, None)),
        ('{ "child-pid": 7, "net-namespace": 1 }\n', (7, None)),
        ('{ "child-pid": 7 }\n{ "exit-code": 137 }\n', (7, 137)),
        ('{ "child-pid": 7 }\n{ "exit-co', (7, None)),
        ('{ "child-pid": "x" }\n[]\nnull\n', (None, None)),
    ],
)
def test_the_status_file_is_read_as_far_as_it_goes(
    tmp_path: Path, text: str, expected: tuple[int | None, int | None]
) -> None:
    (tmp_path / "vmm.json").write_text(text)
    assert read_status_file(tmp_path / "vmm.json") == expected
    assert read_status_file(tmp_path / "none.json") == (None, None)
