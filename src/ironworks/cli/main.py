"""The entry point of `iron`: the table of commands, errors as sentences, exit statuses."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from cyclopts import App, CycloptsError, Group, Parameter

from ironworks import __version__
from ironworks.model.errors import IronError

EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

_HELP = """A self-hosted microVM cloud: give it an OCI image, and it returns an isolated, running VM
with an endpoint, and a bill for what that VM really used."""
_DEPLOY, _LOOK, _BILL, _OPERATE, _MACHINE = (
    Group(title, sort_key=number)
    for number, title in enumerate(("Deploy", "Look inside", "Usage and cost", "Operate",
                                    "This machine"))
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One entry of the table.

    Attributes:
        name: As it is typed.
        target: `module:attribute`, a function or an App, below `ironworks.cli`; imported when run.
        help: One sentence.
        group: Where `iron --help` lists it.
        reports_errors_itself: It writes its own line of JSON, also when it fails.
    """

    name: str
    target: str
    help: str
    group: Group
    reports_errors_itself: bool = False


COMMANDS = (
    Command(name="deploy", target="deploy:command", group=_DEPLOY,
            help="Deploy an image and wait until its endpoint answers."),
    Command(name="deployment", target="deployment:app", group=_DEPLOY,
            help="List, show and delete deployments."),
    Command(name="job", target="job:app", group=_DEPLOY,
            help="Follow long-running work."),
    Command(name="vm", target="vm:app", group=_LOOK,
            help="Show and steer VMs, read their consoles."),
    Command(name="build", target="build:app", group=_DEPLOY,
            help="Build an image; list and show builds, read their logs."),
    Command(name="policy", target="policy:app", group=_DEPLOY,
            help="Which images may be built, and what is changed in them."),
    Command(name="registry", target="registry:app", group=_DEPLOY,
            help="Credentials for private registries."),
    Command(name="asset", target="asset:app", group=_LOOK,
            help="List and show kernels, initrds and root file systems."),
    Command(name="usage", target="usage:command", group=_BILL,
            help="What was used, and how complete that knowledge is."),
    Command(name="invoice", target="invoice:app", group=_BILL,
            help="What it costs."),
    Command(name="tenant", target="tenant:app", group=_OPERATE,
            help="Open, list and show tenants."),
    Command(name="key", target="key:app", group=_OPERATE,
            help="Make, list and revoke API keys."),
    Command(name="host", target="host:app", group=_OPERATE,
            help="List, show and steer the machines that run VMs."),
    Command(name="quarantine", target="quarantine:app", group=_OPERATE,
            help="Usage that cannot be true: list it, release or reject it."),
    Command(name="login", target="login:command", group=_OPERATE,
            help="Remember a platform and an API key for the commands above."),
    # What works on this machine itself, not through the API, follows here.
    Command(name="up", target="up:up", group=_MACHINE,
            help="Run the platform on this machine."),
    Command(name="down", target="up:down", group=_MACHINE,
            help="Stop the platform on this machine; its VMs go on."),
    Command(name="doctor", target="doctor:doctor", group=_MACHINE,
            help="Say whether this machine can run VMs, how, and why."),
    Command(name="demo", target="demo:demo", group=_MACHINE, reports_errors_itself=True,
            help="Image → VM → endpoint → bill on this machine, then nothing left."),
)  # fmt: skip


def make_app() -> App:
    """The command line; no command's module is imported yet."""
    app = App(
        name="iron",
        help=_HELP,
        version=__version__,
        result_action="return_value",
        default_parameter=Parameter(negative=(), show_default=False),
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for command in COMMANDS:
        app.command(
            f"ironworks.cli.{command.target}",
            name=command.name,
            help=command.help,
            group=command.group,
        )
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit status; `docs/reference/exit-statuses.md` lists them.
    """
    try:
        result: object = make_app()([*arguments])
        sys.stdout.flush()
    except CycloptsError as error:
        _say(_usage_sentence(error, arguments))
        return EXIT_USAGE
    except IronError as error:
        return _report(error, arguments)
    except KeyboardInterrupt:
        _say("Interrupted.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for a person
        if os.environ.get("IRONWORKS_DEBUG"):
            traceback.print_exc()
        _say(
            f"A fault in iron itself: {type(error).__name__}: {error}. "
            "Set IRONWORKS_DEBUG=1 to see where, and report it."
        )
        return EXIT_INTERNAL
    return result if isinstance(result, int) else 0


def _usage_sentence(error: CycloptsError, arguments: Sequence[str]) -> str:
    """What is wrong with the command line, and where to read on."""
    names = [command.name for command in COMMANDS]
    typed = next(iter(arguments), "")
    if typed in names:
        text = " ".join(str(error).split())
        end = "" if text.endswith((".", "!", "?")) else "."
        words = " ".join(error.command_chain or [typed])
        return f"{text}{end} `iron {words} --help` shows how it is used."
    if typed.startswith("-"):
        return f"Options stand after the command: `iron COMMAND {typed}`. `iron --help` lists all."
    # The library's own sentence would import every command to list them all.
    near = difflib.get_close_matches(typed, names, n=1)
    question = f" Did you mean `iron {near[0]}`?" if near else ""
    return f"There is no command {typed!r}.{question} `iron --help` lists them all."


def _report(error: IronError, arguments: Sequence[str]) -> int:
    command = next((one for one in COMMANDS if arguments and one.name == arguments[0]), None)
    itself = command is not None and command.reports_errors_itself
    if "--json" in arguments and not itself:
        known = {"code": error.code, "message": str(error), "exit_status": error.exit_status}
        sys.stdout.write(json.dumps({"error": known}) + "\n")
        sys.stdout.flush()
    _say(str(error))
    return error.exit_status


def _say(sentence: str) -> None:
    sys.stderr.write(f"iron: {sentence}\n")


def main() -> None:
    """The console script."""
    status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Not sys.exit: threads of the HTTP client may outlive the interpreter by a moment and abort the
    # process on its way out, when everything has been done and said.
    os._exit(status)


if __name__ == "__main__":
    main()
