"""`python -m ironworks.assetmanagerd`: one assetmanagerd, until it is told to stop."""

from __future__ import annotations

from ironworks.assetmanagerd.service import NAME, compose
from ironworks.assetmanagerd.types import AssetSettings
from ironworks.runtime.service import main

if __name__ == "__main__":
    main(NAME, AssetSettings, compose)
