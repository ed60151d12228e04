"""builderd and assetmanagerd for real, on loopback: from a reference to an available asset."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyqwest import Client, HTTPTransport

from ironworks.assetmanagerd.service import compose as compose_assets
from ironworks.assetmanagerd.types import AssetSettings
from ironworks.builderd.service import compose as compose_builds
from ironworks.builderd.types import BuilderSettings
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.builderd.v1 import build_pb as pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceClient
from ironworks.model.errors import FailedPrecondition, InvalidRequest, NotFound
from ironworks.runtime.identity import ServiceSigner, ensure_service_keys
from ironworks.runtime.process import run
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.service import make_chassis, run_service
from ironworks.runtime.tasks import Tasks
from ironworks.testkit import images
from ironworks.testkit.images import File, directory, symlink
from ironworks.testkit.seaweed import free_ports

TENANT = "tnt_acme"
RUN: dict[str, object] = {
    "Entrypoint": ["/bin/app"],
    "Env": ["A=b"],
    "ExposedPorts": {"80/tcp": {}},
}


async def until_ready(url: str) -> None:
    client = Client(HTTPTransport(proxy=()))
    for _ in range(500):
        try:
            response = await client.execute("GET", f"{url}/readyz")
        except OSError:
            await asyncio.sleep(0.02)
        else:
            assert response.status == 200
            return
    pytest.fail("the service did not start")


def clients(settings: BuilderSettings, service: str = "gatewayd") -> Clients:
    signer = ServiceSigner.load(
        settings.data_dir, service, settings.trust_domain, make_chassis(service, settings).clock
    )
    return Clients(settings=settings, signer=signer)


@dataclass(kw_only=True)
class World:
    settings: BuilderSettings

    @property
    def images_dir(self) -> Path:
        return self.settings.data_dir / "images"

    def builds(self, tenant_id: str = TENANT) -> BuildServiceClient:
        return clients(self.settings).of(BuildServiceClient, "builderd", tenant_id=tenant_id)

    def assets(self, tenant_id: str = TENANT) -> AssetServiceClient:
        return clients(self.settings).of(AssetServiceClient, "assetmanagerd", tenant_id=tenant_id)

    async def create(self, image: str, tenant_id: str = TENANT, **more: object) -> pb.Build:
        request = pb.CreateBuildRequest(image=image, **more)  # type: ignore[arg-type]
        answer = await self.builds(tenant_id).create_build(request)
        assert answer.build is not None
        return answer.build

    async def end(self, build_id: str, tenant_id: str = TENANT) -> pb.Build:
        last: pb.Build | None = None
        request = pb.WatchBuildRequest(build_id=build_id)
        async for message in self.builds(tenant_id).watch_build(request):
            last = message.build
        assert last is not None
        return last

    async def build(self, image: str, tenant_id: str = TENANT, **more: object) -> pb.Build:
        return await self.end((await self.create(image, tenant_id, **more)).build_id, tenant_id)

    def left_behind(self) -> list[Path]:
        return [
            *(self.settings.builder_dir / "scratch").glob("*/*"),
            *self.settings.staging_dir.iterdir(),
        ]


@asynccontextmanager
async def serving(settings: BuilderSettings, *, builderd: bool = True) -> AsyncGenerator[World]:
    asset_settings = AssetSettings(**settings.model_dump(exclude_unset=True))
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(Tasks())
        stop = asyncio.Event()
        running = [
            tasks.start(
                run_service(make_chassis("assetmanagerd", asset_settings), compose_assets, stop),
                name="assetmanagerd",
            )
        ]
        await until_ready(settings.assetmanagerd_url)
        if builderd:
            running.append(
                tasks.start(
                    run_service(make_chassis("builderd", settings), compose_builds, stop),
                    name="builderd",
                )
            )
            await until_ready(settings.builderd_url)
        yield World(settings=settings)
        stop.set()
        await asyncio.gather(*running)


@pytest.fixture
def settings(tmp_path: Path) -> BuilderSettings:
    ensure_service_keys(tmp_path)
    (tmp_path / "images").mkdir()
    return BuilderSettings(
        data_dir=tmp_path,
        assetmanagerd_url=f"http://127.0.0.1:{free_ports(1)[0]}",
        builderd_url=f"http://127.0.0.1:{free_ports(1)[0]}",
        min_free_bytes=0,
    )


@pytest.fixture
async def world(settings: BuilderSettings) -> AsyncIterator[World]:
    async with serving(settings) as made:
        yield made


def small(text: str = "hello", **more: object) -> images.Image:
    files = [directory("bin"), File(name="bin/app", data=text.encode(), mode=0o755)]
    values: dict[str, object] = {"config": RUN, **more}
    return images.Image(
        layers=[images.Layer(tar=images.make_tar(files))],
        **values,  # type: ignore[arg-type]
    )


async def test_how_an_image_is_run_stays_with_its_asset(world: World) -> None:
    check = {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000, "Retries": 2}
    config = {**RUN, "User": "7:8", "Labels": {"a": "b"}, "Healthcheck": check}
    reference = images.write_image(world.images_dir / "app", small(config=config))
    build = await world.build(reference)
    assert build.result is not None
    answer = await world.assets().get_asset(
        asset_pb.GetAssetRequest(asset_id=build.result.asset_id)
    )
    assert answer.asset is not None
    found = answer.asset.image_config
    assert found is not None
    assert (found.user, found.labels) == ("7:8", {"a": "b"})
    assert found.health_check is not None
    assert (found.health_check.test, found.health_check.retries) == (["CMD-SHELL", "true"], 2)


async def test_a_layout_becomes_an_available_asset(world: World) -> None:
    reference = images.build_sample_layout(world.images_dir / "sample")
    build = await world.build(reference, labels={"app": "web"})
    assert build.failure is None
    assert build.state is pb.BuildState.COMPLETED
    assert build.image_digest.startswith("sha256:")
    assert build.platform == "linux/amd64"
    result = build.result
    assert result is not None
    assert result.image_config is not None
    assert result.image_config.entrypoint[0] == "/bin/httpd"
    assert result.image_config.exposed_ports == ["8080/tcp"]
    answer = await world.assets().get_asset(asset_pb.GetAssetRequest(asset_id=result.asset_id))
    asset = answer.asset
    assert asset is not None
    assert asset.state is asset_pb.AssetState.AVAILABLE
    assert asset.format is asset_pb.AssetFormat.SQUASHFS
    assert (asset.sha256, asset.size_bytes) == (result.sha256, result.size_bytes)
    assert (asset.source_digest, asset.build_id) == (build.image_digest, build.build_id)
    assert asset.labels == {"app": "web"}
    assert [stage.state.name for stage in build.stages] == [
        "RESOLVING", "PULLING", "BUILDING", "VALIDATING", "REGISTERING",
    ]  # fmt: skip
    assert all(stage.ended_at_ns >= stage.started_at_ns > 0 for stage in build.stages)
    assert world.left_behind() == []
    lines = [
        line
        async for line in world.builds().stream_build_logs(
            pb.StreamBuildLogsRequest(build_id=build.build_id)
        )
    ]
    assert [line.sequence for line in lines] == list(range(1, len(lines) + 1))
    assert result.asset_id in lines[-1].text


async def test_the_same_image_is_built_once(world: World) -> None:
    reference = images.write_image(world.images_dir / "small", small())
    many = await asyncio.gather(*(world.build(reference) for _ in range(5)))
    assert all(build.state is pb.BuildState.COMPLETED for build in many)
    assert len({build.result.asset_id for build in many if build.result}) == 1
    assert sum(not build.reused_build_id for build in many) == 1
    again = await world.create(reference)
    assert again.state is pb.BuildState.COMPLETED
    forced = await world.build(reference, force=True)
    assert not forced.reused_build_id
    assert forced.result is not None
    assert forced.result.sha256 == many[0].result.sha256  # type: ignore[union-attr]


async def test_tenants_share_nothing(world: World) -> None:
    reference = images.write_image(world.images_dir / "small", small())
    mine = await world.build(reference)
    theirs = await world.build(reference, "tnt_evil")
    assert mine.result is not None
    assert theirs.result is not None
    assert not theirs.reused_build_id
    assert theirs.result.asset_id != mine.result.asset_id
    with pytest.raises(NotFound):
        await world.builds("tnt_evil").get_build(pb.GetBuildRequest(build_id=mine.build_id))
    listed = await world.builds("tnt_evil").list_builds(pb.ListBuildsRequest())
    assert [build.build_id for build in listed.builds] == [theirs.build_id]


async def test_archives_and_bare_paths(world: World) -> None:
    layout = world.images_dir / "small"
    reference = images.write_image(layout, small())
    oci, docker = world.images_dir / "oci.tar", world.images_dir / "docker.tar"
    for target in (f"oci-archive:{oci}:app:1", f"docker-archive:{docker}:app:1"):
        argv = ["skopeo", "--insecure-policy", "copy", "-q", reference, target]
        await run(argv, timeout_seconds=60)
    zipped, zstd = world.images_dir / "docker.tar.gz", world.images_dir / "oci.tar.zst"
    zipped.write_bytes(gzip.compress(docker.read_bytes()))
    await run(["zstd", "-q", str(oci), "-o", str(zstd)], timeout_seconds=60)
    made = await world.build(reference)
    assert made.result is not None
    for image in (
        str(layout),
        str(oci),
        str(docker),
        str(zipped),
        str(zstd),
        f"docker-archive:{zipped}",
        f"oci-archive:{oci}",
        f"docker-archive:{docker}",
    ):
        build = await world.build(image)
        assert build.failure is None, image
        assert build.result is not None
        assert build.result.sha256 == made.result.sha256, image
    assert world.left_behind() == []


async def test_an_index_gives_this_platform_its_image(world: World) -> None:
    layout = images.Layout(world.images_dir / "multi")
    other = small("other", architecture="arm64")
    layout.tag(latest=layout.platforms([other, small("mine")]))
    build = await world.build(f"oci:{layout.root}:latest")
    assert build.failure is None
    assert build.index_digest != build.image_digest
    layout.tag(latest=layout.platforms([other]))
    refused = await world.build(f"oci:{layout.root}:latest")
    assert refused.failure is not None
    assert refused.failure.code == "unimplemented"
    assert "linux/arm64" in refused.failure.message


def unreadable(directory: Path) -> str:
    (directory / "bad.tar").write_bytes(b"this is no archive" * 1000)
    return f"{directory}/bad.tar"


def truncated(directory: Path) -> str:
    images.write_image(directory / "small", small("x" * 500_000))
    target = directory / "cut.tar"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{directory}/small:latest",
         f"docker-archive:{target}"], check=True
    )  # fmt: skip
    os.truncate(target, target.stat().st_size // 2)
    return f"docker-archive:{target}"


def tampered(place: Path) -> str:
    reference = images.write_image(place / "small", small())
    blobs = place / "small" / "blobs" / "sha256"
    layer = images.make_tar([directory("bin")])
    for blob in blobs.iterdir():
        if not blob.read_bytes().startswith(b"{"):
            blob.write_bytes(layer[: blob.stat().st_size].ljust(blob.stat().st_size, b"\0"))
    return reference


BAD: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "nothing there": (lambda place: f"oci:{place}/none:latest", "not_found", "no image at"),
    "outside of the roots": (lambda place: "oci:/etc:latest", "not_found", "no image at"),
    "a link out of the roots": (
        lambda place: ((place / "out").symlink_to("/etc"), f"{place}/out/passwd")[1],
        "not_found",
        "no image at",
    ),
    "unknown name": (
        lambda place: images.write_image(place / "small", small()).replace("latest", "v9"),
        "invalid_argument",
        "no image named",
    ),
    "other architecture": (
        lambda place: images.write_image(place / "small", small(architecture="arm64")),
        "unimplemented",
        "linux/arm64",
    ),
    "nothing to run": (
        lambda place: images.write_image(place / "small", small(config={})),
        "failed_precondition",
        "neither an entrypoint nor a cmd",
    ),
    "unreadable archive": (unreadable, "invalid_argument", "cannot be read"),
    "cut-off archive": (truncated, "invalid_argument", "cannot be read"),
    "tampered layer": (tampered, "invalid_argument", "not what the manifest says"),
    "hostile layer": (
        lambda place: images.write_image(
            place / "evil",
            images.Image(
                layers=[
                    images.Layer(
                        tar=images.make_tar(
                            [symlink("l", "../../../etc"), File(name="l/passwd", data=b"evil")]
                        )
                    )
                ],
                config=RUN,
            ),
        ),
        "invalid_argument",
        "out of the image",
    ),
    "not a layout": (
        lambda place: ((place / "empty").mkdir(), f"{place}/empty")[1],
        "invalid_argument",
        "not an OCI layout",
    ),
    "a registry of this machine that nobody allowed": (
        lambda place: "docker://127.0.0.1:9/none:latest",
        "permission_denied",
        "not public",
    ),
    "no such registry": (
        lambda place: "docker://registry.invalid/none:latest",
        "unavailable",
        "cannot be reached",
    ),
}


async def test_bad_images_fail_with_one_sentence_and_leave_nothing(world: World) -> None:
    for number, (name, (make, code, sentence)) in enumerate(BAD.items()):
        place = world.images_dir / str(number)
        place.mkdir()
        build = await world.build(make(place))
        assert build.state is pb.BuildState.FAILED, name
        assert build.failure is not None, name
        assert build.failure.code == code, name
        assert sentence in build.failure.message, name
        assert world.left_behind() == [], name
    assert (await world.assets().list_assets(asset_pb.ListAssetsRequest())).assets == []


async def test_an_ext4_is_made_where_it_is_asked_for(world: World) -> None:
    reference = images.build_sample_layout(world.images_dir / "sample")
    squashfs = await world.build(reference)
    build = await world.build(reference, format=pb.RootfsFormat.EXT4)
    assert squashfs.result is not None
    assert build.result is not None
    assert build.result.asset_id != squashfs.result.asset_id
    answer = await world.assets().get_asset(
        asset_pb.GetAssetRequest(asset_id=build.result.asset_id)
    )
    assert answer.asset is not None
    assert answer.asset.format is asset_pb.AssetFormat.EXT4
    assert answer.asset.state is asset_pb.AssetState.AVAILABLE


async def test_what_cannot_be_a_reference_is_refused_at_once(world: World) -> None:
    for image in ("", "oci:rel:x", "oci:/a/../b", "dir:/x", "docker://", "-x", "a\nb", "x" * 2000):
        with pytest.raises(InvalidRequest):
            await world.create(image)


async def test_a_cancelled_build_stops_and_leaves_nothing(world: World) -> None:
    layers = [
        images.Layer(
            tar=images.make_tar([File(name=f"f{n}", data=os.urandom(1 << 20)) for n in range(60)])
        )
    ]
    reference = images.write_image(
        world.images_dir / "large", images.Image(layers=layers, config=RUN)
    )
    build = await world.create(reference)
    async for message in world.builds().watch_build(pb.WatchBuildRequest(build_id=build.build_id)):
        assert message.build is not None
        if message.build.state is pb.BuildState.BUILDING:
            break
    request = pb.CancelBuildRequest(build_id=build.build_id)
    cancelled = (await world.builds().cancel_build(request)).build
    assert cancelled is not None
    assert cancelled.state is pb.BuildState.CANCELLED
    for _ in range(100):
        if not world.left_behind():
            break
        await asyncio.sleep(0.02)
    assert world.left_behind() == []
    ended = await world.end(build.build_id)
    assert ended.state is pb.BuildState.CANCELLED
    await world.builds().delete_build(pb.DeleteBuildRequest(build_id=build.build_id))
    with pytest.raises(NotFound):
        await world.builds().get_build(pb.GetBuildRequest(build_id=build.build_id))


async def test_a_full_disk_is_said(settings: BuilderSettings) -> None:
    async with serving(settings.model_copy(update={"min_free_bytes": 1 << 60})) as world:
        reference = images.write_image(world.images_dir / "small", small("x" * 80_000_000))
        build = await world.build(reference)
        assert build.failure is not None
        assert build.failure.code == "resource_exhausted"
        assert "no room" in build.failure.message
        assert world.left_behind() == []


async def start_builderd(settings: BuilderSettings) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "IRONWORKS_DATA_DIR": str(settings.data_dir),
        "IRONWORKS_BUILDERD_URL": settings.builderd_url,
        "IRONWORKS_ASSETMANAGERD_URL": settings.assetmanagerd_url,
        "IRONWORKS_MIN_FREE_BYTES": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ironworks.builderd", env=environment
    )
    await until_ready(settings.builderd_url)
    return process


async def test_a_killed_builderd_goes_on_with_its_builds(settings: BuilderSettings) -> None:
    async with serving(settings, builderd=False) as world:
        process = await start_builderd(settings)
        layers = [
            images.Layer(
                tar=images.make_tar(
                    [File(name=f"f{n}", data=os.urandom(1 << 20)) for n in range(40)]
                )
            )
        ]
        reference = images.write_image(
            world.images_dir / "large", images.Image(layers=layers, config=RUN)
        )
        build = await world.create(reference)
        watching = world.builds().watch_build(pb.WatchBuildRequest(build_id=build.build_id))
        async for message in watching:
            assert message.build is not None
            if message.build.state is pb.BuildState.BUILDING:
                break
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert world.left_behind() != []
        process = await start_builderd(settings)
        ended = await world.end(build.build_id)
        assert ended.state is pb.BuildState.COMPLETED
        assert ended.attempt_count == 2
        assert world.left_behind() == []
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_only_what_has_ended_is_deleted(world: World) -> None:
    with pytest.raises(NotFound):
        await world.builds().cancel_build(pb.CancelBuildRequest(build_id="bld_x"))
    build = await world.build(images.write_image(world.images_dir / "small", small()))
    with pytest.raises(FailedPrecondition, match="completed already"):
        await world.builds().cancel_build(pb.CancelBuildRequest(build_id=build.build_id))
    stats = await world.builds().get_build_stats(pb.GetBuildStatsRequest())
    assert (stats.completed_count, stats.reused_count, stats.failed_count) == (1, 0, 0)
    quota = await world.builds().get_tenant_quota(pb.GetTenantQuotaRequest())
    assert (quota.running_builds, quota.queued_builds, quota.max_running_builds) == (0, 0, 2)
