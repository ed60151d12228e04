"""How a program in a sandbox speaks with builderd: a plan on standard input, lines of JSON out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ironworks.builderd.flatten.progress import Say
from ironworks.model.errors import IronError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def answer(work: Callable[[str, Say], DataclassInstance]) -> int:
    """Do one plan; 0 if it went well, 1 if it was refused."""
    os.umask(0o077)
    try:
        result = work(sys.stdin.read(), _say)
    except IronError as error:
        context = {key: str(value) for key, value in error.context.items()}
        _say(
            {
                "error": error.code,
                "message": error.message,
                "hint": error.hint,
                "context": context,
            }
        )
        return 1
    _say({"result": asdict(result)})
    return 0
