"""The same digest is the same bytes, whoever builds it, when, and on how many processors."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from ironworks.builderd.flatten.plan import Layer, Limits, Plan, encode
from ironworks.builderd.sandbox import FLATTEN, flatten_sandbox
from ironworks.testkit import images
from ironworks.testkit.images import File, directory, hard_link, symlink, whiteout


def noise(name: str, size: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


def layers() -> list[images.Layer]:
    lower = [
        directory("usr"),
        directory("usr/bin", 0o711),
        *(File(name=f"usr/bin/p{n}", data=noise(f"p{n}", n * 97), mode=0o755) for n in range(300)),
        *(File(name=f"usr/same{n}", data=noise("same", 40_000)) for n in range(5)),
        File(name="usr/zeros", data=bytes(3_000_000)),
        File(name="usr/large", data=noise("large", 5_000_000), uid=1000, gid=70_000),
        hard_link("usr/larger", "usr/large"),
        File(name="null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        File(name="ping", data=b"elf", xattrs={"user.note": "x"}),
    ]
    upper = [symlink("bin", "usr/bin"), whiteout("usr/bin/p7"), File(name="bin/new", data=b"new")]
    return [
        images.Layer(tar=images.make_tar(lower), compression="zstd"),
        images.Layer(tar=images.make_tar(upper), compression="gzip"),
    ]


def build(
    place: Path, rootfs_format: str, *, user: int, processors: int, cpus: str, **env: str
) -> str:
    """SHA-256 of what a fresh process makes in a fresh place."""
    scratch = place / "a scratch of its own"
    scratch.mkdir(parents=True)
    plan_layers: list[Layer] = []
    blobs: list[Path] = []
    for number, layer in enumerate(layers()):
        data = layer.blob()
        blob = place / f"blob{number}"
        blob.write_bytes(data)
        blobs.append(blob)
        plan_layers.append(
            Layer(
                path=f"/blobs/{number}",
                digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
                size_bytes=len(data),
                diff_id=f"sha256:{hashlib.sha256(layer.tar).hexdigest()}",
            )
        )
    plan = Plan(
        layers=tuple(plan_layers),
        output="/scratch/rootfs",
        scratch="/scratch",
        format=rootfs_format,
        limits=Limits(free_bytes=0),
        processors=processors,
    )
    subprocess.run(["chown", "-R", str(user), str(place)], check=True)
    command = [
        "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "taskset", "-c", cpus,
        *flatten_sandbox(plan, blobs=blobs, scratch=scratch).argv(FLATTEN),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        input=encode(plan).encode(),
        check=False,
        capture_output=True,
        cwd=scratch,
        umask=0o077 if user else 0o002,
        env={"PATH": os.environ["PATH"], **env},
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return hashlib.sha256((scratch / "rootfs").read_bytes()).hexdigest()


@pytest.mark.root
@pytest.mark.parametrize("rootfs_format", ["squashfs", "ext4"])
def test_two_fresh_environments_make_the_same_bytes(rootfs_format: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    first = build(
        tmp_path / "one", rootfs_format, user=0, processors=1, cpus="0", TZ="Asia/Tokyo", LANG="C"
    )
    other = Path("/var/tmp") / f"iw-{tmp_path.name}"
    try:
        second = build(
            other,
            rootfs_format,
            user=61_234,
            processors=4,
            cpus=f"0-{(os.cpu_count() or 1) - 1}",
            TZ="America/Caracas",
            LC_ALL="C.UTF-8",
            SOURCE_DATE_EPOCH="1234567890",
            E2FSPROGS_FAKE_TIME="12345",
        )
    finally:
        shutil.rmtree(other, ignore_errors=True)
    assert first == second
