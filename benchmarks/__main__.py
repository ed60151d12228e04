"""`./iron bench`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.frame import Benchmark, keep, record, revision
from ironworks.model.errors import IronError

NAMES = sorted(
    path.stem
    for path in Path(__file__).parent.glob("[a-z]*.py")
    if "\nBENCHMARK = " in path.read_text()
)
"""Each benchmark is a module of this folder that has a BENCHMARK."""


def of(name: str) -> Benchmark:
    """The benchmark of that name; only its own module is imported."""
    found: Benchmark = import_module(f"benchmarks.{name}").BENCHMARK
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="iron bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="which; none lists them")
    parser.add_argument("--quick", action="store_true", help="fewer runs: within a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON, kept")
    return parser.parse_args()


async def measure(benchmark: Benchmark, *, quick: bool) -> dict[str, object]:
    """Run one benchmark."""
    outcome = await benchmark.measure(quick)
    return record(benchmark, outcome, commit=await revision(), quick=quick)


def main() -> int:
    """Run; the exit status is 0 if the goal is met, 1 if not."""
    asked = arguments()
    if asked.name is None:
        for name in NAMES:
            print(f"{name:12} {of(name).goal}")
        return 0
    try:
        result = asyncio.run(measure(of(asked.name), quick=asked.quick))
    except IronError as error:
        print(f"iron bench: {error}", file=sys.stderr)
        return error.exit_status
    for key, value in result.items():
        print(f"{key:28} {value}", file=sys.stderr if asked.json else sys.stdout)
    if asked.json:
        keep(result)
        print(json.dumps(result))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
