"""`python -m ironworks.builderd.flatten`: one plan on standard input, lines of JSON out."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ironworks.builderd.flatten.plan import Layer, Limits, Plan
from ironworks.builderd.flatten.run import flatten
from ironworks.model.errors import IronError


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _read_plan(text: str) -> Plan:
    raw: dict[str, Any] = json.loads(text)
    return Plan(
        layers=tuple(Layer(**layer) for layer in raw["layers"]),
        output=raw["output"],
        scratch=raw["scratch"],
        limits=Limits(**raw["limits"]),
        processors=raw["processors"],
    )


def main() -> int:
    """Do one plan; 0 if it went well, 1 if the image was refused."""
    os.umask(0o077)
    plan = _read_plan(sys.stdin.read())
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
    _say({"result": {name: getattr(result, name) for name in result.__slots__}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
