"""`python -m ironworks.gatewayd`."""

from ironworks.gatewayd.service import compose
from ironworks.gatewayd.settings import GatewaydSettings
from ironworks.runtime.service import main

if __name__ == "__main__":
    main("gatewayd", GatewaydSettings, compose)
