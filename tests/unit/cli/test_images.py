from __future__ import annotations

from pathlib import Path

import pytest

from ironworks.cli.images import here
from ironworks.model.errors import NotFound


def test_what_is_on_this_machine_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    assert here("./app", tmp_path) == (tmp_path / "app", "")
    assert here("oci:app:v1", tmp_path) == (tmp_path / "app", "v1")
    assert here(str(tmp_path / "app"), Path("/")) == (tmp_path / "app", "")
    for elsewhere in ("app", "ghcr.io/app:1", "oci:/srv/app", "/srv/none", "upload:upl_1"):
        assert here(elsewhere, tmp_path) is None
    (tmp_path / "app" / "oci-layout").touch()
    (tmp_path / "nginx.tar.gz").touch()
    (tmp_path / "nginx").touch()
    assert here("app:v1", tmp_path) == (tmp_path / "app", "v1")
    assert here("nginx.tar.gz", tmp_path) == (tmp_path / "nginx.tar.gz", "")
    for repository in ("nginx", "nginx:1", "redis.tar"):
        assert here(repository, tmp_path) is None
    for missing in ("./none", "oci-archive:none.tar", "../none"):
        with pytest.raises(NotFound, match="on this machine"):
            here(missing, tmp_path)
