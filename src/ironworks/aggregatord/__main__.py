"""`python -m ironworks.aggregatord` runs the service."""

from ironworks.aggregatord.service import compose
from ironworks.aggregatord.types import AggregatordSettings
from ironworks.runtime.service import main

if __name__ == "__main__":
    main("aggregatord", AggregatordSettings, compose)
