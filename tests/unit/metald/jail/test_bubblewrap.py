"""The jail's command line, and what can be reached from inside of it."""

import subprocess
from pathlib import Path

import pytest

from ironworks.metald.jail.bubblewrap import jail_argv

UID = 1_900_002


def test_the_root_of_a_merged_system_is_shown_by_links(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "sbin").mkdir()
    argv = jail_argv(["/x"], uid=1, gid=2, files={}, root=tmp_path)
    joined = " ".join(argv)
    assert "--symlink usr/lib /lib" in joined
    assert f"--ro-bind {tmp_path}/sbin /sbin" in joined
    assert "/lib64" not in joined


def test_files_and_devices_are_shown_one_by_one(tmp_path: Path) -> None:
    argv = jail_argv(
        ["/x", "y"],
        uid=7,
        gid=8,
        files={"/vm/disk": Path("/data/a")},
        devices={"/dev/kvm": Path("/data/kvm")},
        status_descriptor=5,
        root=tmp_path,
    )
    joined = " ".join(argv)
    assert "--perms 0755 --dir /dev --perms 0755 --dir /vm" in joined
    assert "--ro-bind /data/a /vm/disk --dev-bind /data/kvm /dev/kvm --remount-ro /" in joined
    assert "--json-status-fd 5" in joined
    assert argv[-3:] == ["--", "/x", "y"]
    assert {"--reuid=7", "--regid=8", "--no-new-privs", "--bounding-set=-all"} <= set(argv)


@pytest.mark.root
def test_there_is_little_to_see_and_nothing_to_write(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.write_text("content")
    shown.chmod(0o444)
    script = """
        cat /vm/file; echo; /usr/bin/id -u; /usr/bin/id -g; /usr/bin/id -G; echo $$
        ls / | tr '\\n' ' '; echo
        for path in / /vm /usr /usr/bin /vm/file /tmp /dev/shm; do
            (echo x > $path/new || echo x > $path) 2>/dev/null && echo "wrote $path"
        done
        ls /proc /sys /dev /etc /run /vm/.. 2>/dev/null | grep -E 'self|kernel|null|passwd'
        kill -0 1 && echo alone
        /usr/bin/unshare -r true 2>/dev/null && echo new user namespace
        mount -t tmpfs none /vm 2>/dev/null && echo mounted
        echo end
    """
    argv = jail_argv(
        ["/usr/bin/busybox", "sh", "-c", script], uid=UID, gid=UID, files={"/vm/file": shown}
    )
    done = subprocess.run(argv, capture_output=True, check=True, text=True, timeout=30)
    lines = done.stdout.splitlines()
    assert lines[:5] == ["content", str(UID), str(UID), str(UID), "1"]
    assert set(lines[5].split()) <= {"bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr", "vm"}
    assert lines[6:] == ["alone", "end"]
