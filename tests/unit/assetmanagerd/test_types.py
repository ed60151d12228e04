from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.assetmanagerd.types import AssetSettings
from ironworks.model.errors import InvalidRequest


def settings(directory: Path, **more: object) -> AssetSettings:
    return AssetSettings.model_validate({"data_dir": directory, **more})


def test_the_data_directory_keeps_assets_unless_a_bucket_is_set(tmp_path: Path) -> None:
    assert settings(tmp_path).bucket() is None
    bucket = settings(tmp_path, asset_bucket="assets").bucket()
    assert bucket is not None
    assert (bucket.name, bucket.access_key_id) == ("assets", "")


def test_the_secret_comes_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden\n")
    known = {"asset_bucket": "assets", "asset_bucket_access_key_id": "iw"}
    from_file = settings(tmp_path, asset_bucket_secret_key_file=tmp_path / "secret", **known)
    given = settings(tmp_path, asset_bucket_secret_key="hidden", **known)
    for one in (from_file, given):
        bucket = one.bucket()
        assert bucket is not None
        assert bucket.secret_access_key == "hidden"
        assert "hidden" not in f"{one!r}{bucket!r}"
    with pytest.raises(InvalidRequest, match="its secret is not"):
        settings(tmp_path, **known).bucket()
    with pytest.raises(InvalidRequest, match="cannot be read"):
        settings(tmp_path, asset_bucket_secret_key_file=tmp_path / "no", **known).bucket()
