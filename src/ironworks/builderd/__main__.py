"""`python -m ironworks.builderd`: one builderd, until it is told to stop."""

from __future__ import annotations

from ironworks.builderd.service import NAME, compose
from ironworks.builderd.types import BuilderSettings
from ironworks.runtime.service import main

if __name__ == "__main__":
    main(NAME, BuilderSettings, compose)
