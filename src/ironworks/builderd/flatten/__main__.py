"""`python -m ironworks.builderd.flatten`: one plan on standard input, lines of JSON out."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from ironworks.builderd.flatten.plan import read_plan
from ironworks.builderd.flatten.run import flatten
from ironworks.model.errors import IronError


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Do one plan; 0 if it went well, 1 if the image was refused."""
    os.umask(0o077)
    plan = read_plan(sys.stdin.read())
    try:
        result = flatten(plan, _say)
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


if __name__ == "__main__":
    sys.exit(main())
