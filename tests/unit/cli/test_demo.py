from __future__ import annotations

import json
from pathlib import Path

import pytest

from ironworks.cli import demo
from ironworks.cli.deploy import local_path
from ironworks.model.errors import Unavailable
from ironworks.runtime.settings import BadSettings


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("oci:/srv/web:v1", "/srv/web"),
        ("oci-archive:/srv/web.tar", "/srv/web.tar"),
        ("docker-archive:/srv/web.tar:web:v1", "/srv/web.tar"),
        ("/srv/web", "/srv/web"),
    ],
)
def test_a_local_image_is_read_where_it_is(image: str, path: str) -> None:
    assert local_path(image) == Path(path)
    roots = demo.image_roots(image)["IRONWORKS_LOCAL_IMAGE_ROOTS"]
    assert json.loads(roots) == ["/srv"]


@pytest.mark.parametrize(
    "image", [None, "nginx", "docker.io/library/nginx:1.27", "h:5000/x@sha256:0"]
)
def test_other_images_open_no_directory(image: str | None) -> None:
    assert demo.image_roots(image) == {}


class Fails(demo.Demo):
    async def run(self) -> None:
        self.facts.http_status = 200
        raise Unavailable("It does not answer.")


def test_a_demo_that_fails_ends_with_its_line_and_its_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "Demo", Fails)
    with pytest.raises(Unavailable):
        demo.demo(json=True)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["ok"], said["http_status"], said["error"]) == (False, 200, "It does not answer.")


def test_an_interrupted_demo_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(demo.Demo):
        async def run(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "Demo", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.demo(json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"] == "interrupted"


def test_corrupt_settings_end_it_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IRONWORKS_EDGE_PORT", "many")

    def made(_purpose: str) -> Path:
        pytest.fail("a directory was made")

    monkeypatch.setattr(demo, "make_directory", made)
    with pytest.raises(BadSettings):
        demo.demo()
