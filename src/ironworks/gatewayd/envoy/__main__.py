"""`python -m ironworks.gatewayd.envoy`: becomes Envoy with the bootstrap that gatewayd has written.

The supervisor starts it once the file is there; it may be restarted at any time.
"""

import os

from ironworks.gatewayd.envoy.plane import envoy_argv
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.runtime.settings import load


def main() -> None:
    """Replace this process by Envoy."""
    settings = load(GatewaydSettings)
    bootstrap = settings.directory / "envoy" / "bootstrap.json"
    argv = envoy_argv(bootstrap, settings.edge_concurrency)
    os.execv(argv[0], argv)  # noqa: S606 - the path comes from the wheel


if __name__ == "__main__":
    main()
