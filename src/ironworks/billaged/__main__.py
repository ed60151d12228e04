"""`python -m ironworks.billaged` runs the service."""

from ironworks.billaged.service import compose
from ironworks.billaged.types import BillagedSettings
from ironworks.runtime.service import main

if __name__ == "__main__":
    main("billaged", BillagedSettings, compose)
