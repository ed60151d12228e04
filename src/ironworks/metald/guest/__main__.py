"""`python -m ironworks.metald.guest build [--dir DIR] [--refresh]`: build the guest if needed."""

import argparse
import sys
from pathlib import Path

from ironworks.metald.guest.build import DEFAULT_DIR, build_now
from ironworks.model.errors import IronError
from ironworks.runtime.settings import Settings, load


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ironworks.metald.guest")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build kernel and initrd, if they are not there yet")
    build.add_argument("--dir", type=Path, default=None, help=f"default: {DEFAULT_DIR}")
    build.add_argument("--refresh", action="store_true", help="look for a newer kernel")
    return parser.parse_args()


def main() -> int:
    """Build; print the guest's directory. Returns the exit status."""
    arguments = _arguments()
    result = build_now(arguments.dir or load(Settings).guest_dir, refresh=arguments.refresh)
    if isinstance(result, IronError):
        sys.stderr.write(f"{result}\n")
        return result.exit_status
    sys.stdout.write(f"{result.directory}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
