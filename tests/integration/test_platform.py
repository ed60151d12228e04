"""The whole platform as `iron up` runs it, and what it says of bad input."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from ironworks.gen.ironworks.builderd.v1 import policy_pb
from ironworks.gen.ironworks.gatewayd.v1 import roles_pb
from ironworks.machine import inventory
from ironworks.machine.platform import PlatformFile
from ironworks.machine.temporary import make_directory, started, temporary_platform
from ironworks.model.errors import FailedPrecondition, NotFound, PermissionDenied
from ironworks.sdk import AsyncIronworks
from ironworks.testkit import images

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Running:
    described: PlatformFile
    env: dict[str, str]

    @property
    def data_dir(self) -> Path:
        return Path(self.described.data_dir)

    @property
    def images(self) -> Path:
        return self.data_dir / "images"


def iron(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ironworks.cli.main", *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncGenerator[Running]:
    # No slots made ahead: what comes and goes of them is nothing that an image has left.
    async with temporary_platform("test", {"IRONWORKS_READY_SLOTS": "0"}) as described:
        data_dir = Path(described.data_dir)
        async with AsyncIronworks(data_dir=data_dir) as operator:
            tenant = await operator.tenants.create("tests")
            roles = [roles_pb.Role.OWNER]
            key = await operator.keys.create("tests", roles=roles, tenant_id=tenant.tenant_id)
        env = {
            "IRONWORKS_API_URL": described.api_url,
            "IRONWORKS_API_KEY": key.secret,
            "IRONWORKS_CA_FILE": described.ca_file,
        }
        (data_dir / "images").mkdir(exist_ok=True)
        yield Running(described, env)


def without_entrypoint(directory: Path) -> str:
    sample = images.sample_image(images.static_busybox(), "amd64")
    return images.write_image(directory / "noentry", replace(sample, config={}))


def garbage(directory: Path) -> str:
    path = directory / "garbage.tar"
    path.write_bytes(b"no tar at all" * 1000)
    return f"docker-archive:{path}"


BAD_IMAGES: dict[str, tuple[Callable[[Path], str], int, str]] = {
    "unknown": (lambda place: f"oci:{place}/nothing", 66, "There is no image at"),
    "a neighbour's registry": (lambda _place: "127.0.0.1:1/nothing:1", 77, "not public"),
    "unreadable": (garbage, 65, "cannot be read"),
    "other CPU": (
        lambda place: images.build_sample_layout(place / "arm", "arm64"),
        72,
        "is for linux/arm64, and this platform runs linux/amd64",
    ),
    "nothing to run": (without_entrypoint, 68, "neither an entrypoint nor a cmd"),
    "file of the host": (lambda _place: "oci:/etc", 66, "There is no image at"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
async def test_a_bad_image_is_one_sentence_and_leaves_nothing(running: Running, name: str) -> None:
    make, status, sentence = BAD_IMAGES[name]
    before = await inventory.take(running.data_dir)
    done = iron("deploy", make(running.images), **running.env)
    assert done.returncode == status, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("iron: ")
    assert sentence in last
    assert "Traceback" not in done.stderr
    assert await inventory.take(running.data_dir) == before
    assert list((running.data_dir / "builderd" / "scratch").glob("*/*")) == []
    listed = iron("deployment", "list", "--json", **running.env)
    assert '"DEPLOYMENT_STATE_RUNNING"' not in listed.stdout


async def test_a_second_platform_over_the_same_directory_is_refused(running: Running) -> None:
    done = iron("up", "--data-dir", str(running.data_dir))
    assert done.returncode == 83
    assert "already runs" in done.stderr
    assert running.described.pid
    os.kill(running.described.pid, 0)


async def test_a_killed_service_is_started_again(running: Running) -> None:
    os.kill(running.described.pids["builderd"], signal.SIGKILL)
    done = iron("deploy", f"oci:{running.images}/nothing", **running.env)
    assert done.returncode == 66, done.stderr


async def test_no_call_of_the_api_without_a_token(running: Running) -> None:
    env = {**running.env, "IRONWORKS_API_KEY": "iwk_" + "x" * 43}
    done = iron("deployment", "list", **env)
    assert done.returncode == 76
    assert "Traceback" not in done.stderr


def test_corrupt_settings(tmp_path: Path) -> None:
    (tmp_path / "ironworks.toml").write_text("edge_port = [not toml")
    done = iron("up", "--data-dir", str(tmp_path))
    assert done.returncode == 78
    assert "ironworks.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_out_of_bounds(tmp_path: Path) -> None:
    done = iron("up", "--data-dir", str(tmp_path), IRONWORKS_LOG_LEVEL="LOUD")
    assert done.returncode == 78
    assert "log_level" in done.stderr


def test_a_port_that_was_set_and_is_taken(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        done = iron("up", "--data-dir", str(tmp_path), IRONWORKS_EDGE_PORT=port)
    assert done.returncode == 82
    assert f"Port {port}, set for edge, is taken" in done.stderr


def test_no_qemu(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("skopeo", "sqfstar", "bwrap", "nft", "setpriv"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    done = iron("up", "--data-dir", str(tmp_path / "data"), PATH=str(programs))
    assert done.returncode == 80
    assert "qemu-system-x86_64" in done.stderr


def test_no_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = iron("up", "--data-dir", str(tmp_path / "file" / "data"))
    assert done.returncode == 81
    assert "cannot be used" in done.stderr


async def test_a_platform_that_cannot_start_says_why_to_who_started_it() -> None:
    data_dir = make_directory("test")
    try:
        with pytest.raises(FailedPrecondition, match="IRONWORKS_") as caught:
            async with started(data_dir, {"IRONWORKS_EDGE_PORT": "many"}):
                pytest.fail("it started")
        assert caught.value.exit_status == 78
    finally:
        shutil.rmtree(data_dir)


async def test_a_tenant_builds_what_it_uploads_under_its_own_policy(
    running: Running, tmp_path: Path
) -> None:
    files = [
        images.File(name="app", data=b"x"),
        images.File(name="su", data=b"x", mode=0o4755),
    ]
    layer = images.Layer(tar=images.make_tar(files))
    images.write_image(
        tmp_path / "app", images.Image(layers=[layer], config={"Cmd": ["/app"], "User": "1000"})
    )
    policy = policy_pb.Policy(setuid_files=policy_pb.PolicyAction.STRIP, non_root_required=True)
    env = running.env
    async with AsyncIronworks(
        env["IRONWORKS_API_URL"], env["IRONWORKS_API_KEY"], env["IRONWORKS_CA_FILE"]
    ) as tenant:
        reference = await tenant.builds.upload(tmp_path / "app")
        tried = await tenant.policies.evaluate(reference, policy=policy)
        assert tried.report is not None
        assert tried.report.outcome is policy_pb.PolicyOutcome.CHANGED
        await tenant.policies.set(policy, expected_revision=0)
        with pytest.raises(PermissionDenied):
            await tenant.policies.set(policy, expected_revision=0, platform=True)
        asked = await tenant.builds.create(reference)
        states = [build.state.name async for build in tenant.builds.watch(asked.build_id)]
        assert states[-1] == "COMPLETED"
        lines = [line.text async for line in tenant.builds.logs(asked.build_id)]
        assert "is available" in lines[-1]
        build = await tenant.builds.get(asked.build_id)
        assert build.policy_report is not None
        assert build.policy_report.outcome is policy_pb.PolicyOutcome.CHANGED
        quota = await tenant.builds.quota()
        assert quota.upload_bytes > 0
        assert (await tenant.builds.stats()).completed_count >= 1
        await tenant.registries.login("ghcr.io", "bot", "s3cret")
        assert [one.username for one in await tenant.registries.list()] == ["bot"]
        await tenant.registries.logout("ghcr.io")
        await tenant.builds.delete(asked.build_id)
        with pytest.raises(NotFound):
            await tenant.builds.get(asked.build_id)
        await tenant.policies.set(policy_pb.Policy(), expected_revision=1)
