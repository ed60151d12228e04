"""Errors become sentences and exit statuses; `--help` stays quick."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from ironworks.cli import main
from ironworks.cli.main import COMMANDS, run
from ironworks.model.errors import NotFound, all_errors


@pytest.fixture(autouse=True)
def nothing_configured(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IRONWORKS_API_URL", "IRONWORKS_API_KEY", "IRONWORKS_CA_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IRONWORKS_DATA_DIR", str(tmp_path))


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(main, "make_app", lambda: fail)


@pytest.mark.parametrize("kind", all_errors())
def test_each_class_of_errors_has_its_exit_status(
    kind: type[NotFound], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, kind("It is so.", hint="Do this.", context={"secret": "hidden"}))
    assert run(["tenant", "list"]) == kind.exit_status
    captured = capsys.readouterr()
    assert captured.err == "iron: It is so. Do this.\n"
    assert captured.out == ""


def test_exit_statuses_differ_and_leave_those_of_shells_alone() -> None:
    statuses = [kind.exit_status for kind in all_errors()]
    assert len(set(statuses)) == len(statuses)
    assert not {0, 1, 2, 130} & set(statuses)


def test_an_error_is_also_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, NotFound("There is no VM."))
    assert run(["vm", "get", "vm_x", "--json"]) == 66
    shown = json.loads(capsys.readouterr().out)
    assert shown == {
        "error": {"code": "not_found", "message": "There is no VM.", "exit_status": 66}
    }


def test_the_demo_writes_its_own_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, NotFound("There is no image."))
    assert run(["demo", "--json"]) == 66
    assert capsys.readouterr().out == ""


def test_an_interrupt_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, KeyboardInterrupt())
    assert run([]) == 130
    assert capsys.readouterr().err == "iron: Interrupted.\n"


def test_a_fault_of_ours_is_70_and_shows_its_traceback_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, ValueError("broken"))
    assert run([]) == 70
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("IRONWORKS_DEBUG", "1")
    assert run([]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tenent"], "There is no command 'tenent'. Did you mean `iron tenant`?"),
        (["--frob"], "Options stand after the command: `iron COMMAND --frob`."),
        (["tenant", "create"], 'Command "tenant create" parameter'),
        (["tenant", "frob"], "`iron tenant --help` shows how it is used."),
        (["vm", "stop", "--frob"], "`iron vm stop --help` shows how it is used."),
        (["deploy", "x", "--replicas", "many"], "`iron deploy --help`"),
    ],
)
def test_a_wrong_command_line_is_2_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_nothing_configured_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tenant", "list"]) == 68
    assert "iron login" in capsys.readouterr().err


def test_without_a_key_is_76(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["vm", "list", "--url", "http://127.0.0.1:9"]) == 76
    assert "iron login" in capsys.readouterr().err


def test_every_command_exists() -> None:
    for command in COMMANDS:
        module, _, name = command.target.partition(":")
        assert hasattr(importlib.import_module(f"ironworks.cli.{module}"), name), command


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert run([command.name, "--help"]) == 0
        assert f"Usage: iron {command.name}" in capsys.readouterr().out


def test_help_imports_no_command_and_no_sdk() -> None:
    script = (
        "import sys; from ironworks.cli.main import run; run(['--help']); "
        "print([m for m in sys.modules if m.startswith(('ironworks.sdk', 'ironworks.gen', "
        "'ironworks.runtime', 'pyqwest', 'pydantic', 'connectrpc'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
