"""The config disk: Python writes it, init's own parser reads it, whatever it is."""

import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ironworks.metald.drivers.driver import GuestConfig, GuestNetwork
from ironworks.metald.guest.build import default_source_dir
from ironworks.metald.guest.config import (
    MAGIC,
    MAX_ARGS,
    MAX_RECORDS_BYTES,
    VERSION,
    ConfigError,
    Control,
    PowerOff,
    Tag,
    config_disk,
    signal_number,
)

HERE = Path(__file__).parent
GUEST = GuestConfig(hostname="web-1", argv=("/bin/true",))
# Init never frees what it needs for as long as it runs.
NO_LEAK_CHECK = {"ASAN_OPTIONS": "detect_leaks=0"}
Parse = Callable[[bytes], list[str]]
Resolve = Callable[[str], str]


def compile_with_sanitizers(out: Path, *sources: Path) -> Path:
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-g", "-O1"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-format-security"]
    command += ["-I", str(default_source_dir()), "-o", str(out), *map(str, sources)]
    subprocess.run(command, check=True, timeout=120)
    return out


@pytest.fixture(scope="session")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Parse:
    """Init's parser, built with sanitizers: a read or write out of bounds ends it."""
    program = compile_with_sanitizers(
        tmp_path_factory.mktemp("config") / "parse",
        HERE / "parse_config.c",
        default_source_dir() / "config.c",
    )

    def run(disk: bytes) -> list[str]:
        done = subprocess.run(
            [program], input=disk, capture_output=True, check=False, timeout=30, env=NO_LEAK_CHECK
        )
        assert done.returncode in {0, 3}, done.stderr.decode()
        return done.stdout.decode(errors="surrogateescape").split("\n")[:-1]

    return run


def disk_of(records: bytes, *, version: int = VERSION, length: int | None = None) -> bytes:
    size = len(records) if length is None else length
    return MAGIC + struct.pack("<IIII", version, size, zlib.crc32(records), 0) + records


def record(tag: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", tag, 0, len(value) if length is None else length) + value


ARG = record(Tag.ARG, b"x\0")


def test_all_that_is_written_is_read(parse: Parse) -> None:
    guest = GuestConfig(
        hostname="web-1",
        argv=("sh", "-c", 'echo "$0"', "", "ü b"),
        env=(("A", "1"), ("B", "x=y z")),
        user="app:extra",
        workdir="/srv/app",
        stop_signal="SIGUSR1",
        stop_grace_seconds=1.5,
        network=GuestNetwork(nameservers=("192.0.2.1", "192.0.2.2"), mtu=1400),
    )
    disk = config_disk(
        guest,
        root_format="ext4",
        control=Control.VSOCK,
        control_port=1024,
        power_off=PowerOff.REBOOT,
        overlay_bytes=1 << 33,
        clock_ns=1_700_000_000_123_456_789,
    )
    assert len(disk) % 512 == 0
    assert parse(disk) == [
        "hostname=web-1",
        "format=ext4",
        "overlay=8589934592",
        "address=172.16.0.2/30",
        "gateway=172.16.0.1",
        "mtu=1400",
        "dns=2",
        "user=app:extra",
        "workdir=/srv/app",
        "env=A=1",
        "env=B=x=y z",
        "arg=sh",
        "arg=-c",
        'arg=echo "$0"',
        "arg=",
        "arg=ü b",
        "stop=10 after 1500",
        "power_off=1",
        "control=2:1024",
        "clock=1700000000123456789",
    ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0\n", codec="utf-8"), max_size=30),
        min_size=1,
        max_size=8,
    )
)
def test_any_argument_arrives_as_it_is(parse: Parse, argv: list[str]) -> None:
    argv[0] = argv[0] or "x"
    lines = parse(config_disk(replace(GUEST, argv=tuple(argv)), root_format="squashfs"))
    assert [line.removeprefix("arg=") for line in lines if line.startswith("arg=")] == argv


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        (b"", "shorter than its header"),
        (MAGIC, "shorter than its header"),
        (bytes(512), "magic"),
        (disk_of(ARG, version=2), "version"),
        (disk_of(ARG, length=MAX_RECORDS_BYTES + 1), "more than 1 MiB"),
        (disk_of(ARG, length=0xFFFF_FFFF), "more than 1 MiB"),
        (disk_of(ARG, length=len(ARG) + 1), "shorter than it claims"),
        (disk_of(ARG)[:-1] + b"\1", "checksum"),
        (disk_of(b""), "no entrypoint"),
        (disk_of(ARG + b"\0" * 7), "middle of a record"),
        (disk_of(record(Tag.ARG, b"x\0", 3)), "longer than what is left"),
        (disk_of(record(Tag.ARG, b"x\0", 0xFFFF_FFFF)), "longer than what is left"),
        (disk_of(record(Tag.ARG, b"")), "without its end"),
        (disk_of(record(Tag.ARG, b"x")), "without its end"),
        (disk_of(record(Tag.ARG, b"a\0b\0")), "without its end"),
        (disk_of(record(Tag.MTU, b"\0\0\0\0")), "MTU"),
        (disk_of(record(Tag.MTU, b"\0\0\0")), "wrong size"),
        (disk_of(record(Tag.ADDRESS, b"\x21aaaa")), "prefix"),
        (disk_of(record(Tag.ADDRESS, b"\x18aaa")), "wrong size"),
        (disk_of(record(Tag.DNS, b"abcd") * 4), "DNS"),
        (disk_of(record(Tag.ENV, b"A\0")), "without a name"),
        (disk_of(record(Tag.ENV, b"=A\0")), "without a name"),
        (disk_of(record(Tag.WORKDIR, b"srv\0")), "absolute"),
        (disk_of(record(Tag.HOSTNAME, b"\0")), "host name"),
        (disk_of(record(Tag.HOSTNAME, b"x" * 64 + b"\0")), "host name"),
        (disk_of(record(Tag.STOP_SIGNAL, struct.pack("<I", 65))), "stop signal"),
        (disk_of(record(Tag.POWER_OFF, struct.pack("<I", 9))), "power off"),
        (disk_of(record(Tag.CONTROL, struct.pack("<I", 9))), "control channel"),
        (disk_of(ARG * (MAX_ARGS + 1)), "arguments"),
        (disk_of(record(99, b"") + ARG), "does not know"),
    ],
    ids=lambda value: value if isinstance(value, str) else "disk",
)
def test_a_disk_that_is_wrong_is_refused_with_its_reason(
    parse: Parse, disk: bytes, why: str
) -> None:
    (line,) = parse(disk)
    assert line.startswith("refused: ")
    assert why in line


def test_ipv6_an_init_of_the_image_and_a_disk_of_its_own_are_told(parse: Parse) -> None:
    network = GuestNetwork(
        address_v6="fd00::2",
        prefix_length_v6=126,
        gateway_v6="fd00::1",
        nameservers=("192.0.2.1", "2001:db8::53"),
    )
    guest = replace(GUEST, network=network, image_init=True)
    assert parse(config_disk(guest, root_format="squashfs", scratch=True))[-4:] == [
        "v6=fd00..02/126 gateway=fd..01",
        "dns0=v4 c0",
        "dns1=v6 20",
        "image_init=1 scratch=1",
    ]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (GuestNetwork(address_v6="10.0.0.1"), "no IPv6 address"),
        (GuestNetwork(address_v6="fd00::2", prefix_length_v6=129), "0 to 128"),
        (GuestNetwork(gateway_v6="fd00::1"), "gateway and no IPv6 address"),
        (GuestNetwork(nameservers=("dns.example",)), "no IP address"),
    ],
)
def test_wrong_ipv6_is_refused(network: GuestNetwork, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_disk(replace(GUEST, network=network), root_format="squashfs")


def test_a_tag_that_may_be_unknown_is_passed_over(parse: Parse) -> None:
    assert "arg=x" in parse(disk_of(record(0x8000 | 99, b"anything") + ARG))


_records = st.lists(
    st.tuples(st.integers(0, 30) | st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=12
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_records, st.binary(max_size=16), st.integers(-2, 2))
@example([], b"", 0)
def test_no_disk_is_too_strange_to_be_parsed(
    parse: Parse, records: list[tuple[int, bytes]], rest: bytes, off: int
) -> None:
    body = b"".join(record(tag, value) for tag, value in records) + rest
    assert parse(disk_of(body, length=max(0, len(body) + off)))
    assert parse(disk_of(body))


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (replace(GUEST, argv=()), "no entrypoint"),
        (replace(GUEST, argv=("",)), "no entrypoint"),
        (replace(GUEST, argv=("a\0b",)), "NUL"),
        (replace(GUEST, argv=("x",) * (MAX_ARGS + 1)), "arguments"),
        (replace(GUEST, argv=("x" * 131_072,)), "longer than"),
        (replace(GUEST, argv=("x" * 100_000,) * 11), "1 MiB"),
        (replace(GUEST, env=(("A=B", "c"),)), "variable"),
        (replace(GUEST, env=(("", "c"),)), "variable"),
        (replace(GUEST, workdir="srv"), "absolute"),
        (replace(GUEST, hostname=""), "host name"),
        (replace(GUEST, hostname="x" * 64), "host name"),
        (replace(GUEST, stop_signal="SIGNOPE"), "stop signal"),
        (replace(GUEST, stop_grace_seconds=-1), "grace"),
        (replace(GUEST, stop_grace_seconds=float("nan")), "grace"),
        (replace(GUEST, network=GuestNetwork(address="300.1.1.1")), "address"),
        (replace(GUEST, network=GuestNetwork(mtu=10)), "MTU"),
        (replace(GUEST, network=GuestNetwork(prefix_length=33)), "prefix"),
        (replace(GUEST, network=GuestNetwork(nameservers=("192.0.2.1",) * 4)), "nameservers"),
    ],
)
def test_what_a_guest_cannot_be_told_is_refused(guest: GuestConfig, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config_disk(guest, root_format="squashfs")


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("SIGQUIT", 3), ("64", 64)],
)
def test_stop_signals_are_known_by_name_and_number(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "SIG", "SIGTERM+x", "SIGRTMIN+99", "TERM KILL"])
def test_stop_signals_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        signal_number(name)


@pytest.fixture(scope="session")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> Resolve:
    """Init's look-up of users, on files as images have them."""
    directory = tmp_path_factory.mktemp("user")
    program = compile_with_sanitizers(
        directory / "resolve", HERE / "resolve_user.c", default_source_dir() / "user.c"
    )
    passwd, group = directory / "passwd", directory / "group"
    passwd.write_text(
        "root:x:0:0:root:/rootly:/bin/sh\nbroken\n:::::\nlong:x:1:1:" + "y" * 9000 + ":/:\n"
        "app:x:1000:1001::/srv/app:\nbig:x:4294967295:1::/:\nempty:x:7:8:::\nlast:x:9:9::/last:"
    )
    group.write_text("root:x:0:\napp:x:1001:app\nbroken\nextra:x:2000:other,app\nnone:x:3000:\n")

    def run(spec: str) -> str:
        done = subprocess.run(
            [program, spec, passwd, group],
            capture_output=True,
            check=False,
            timeout=30,
            env=NO_LEAK_CHECK,
        )
        assert done.returncode in {0, 3}, done.stderr.decode()
        return done.stdout.decode()

    return run


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("", "0:0 0 /rootly"),
        ("app", "1000:1001 1001 2000 /srv/app"),
        ("1000", "1000:1001 1001 2000 /srv/app"),
        ("app:extra", "1000:2000 2000 /srv/app"),
        ("app:77", "1000:77 77 /srv/app"),
        ("4321", "4321:0 0 /"),
        ("4321:8765", "4321:8765 8765 /"),
        ("app:", "1000:1001 1001 2000 /srv/app"),
        (":none", "0:3000 3000 /rootly"),
        ("empty", "7:8 8 /"),
        ("last", "9:9 9 /last"),
    ],
)
def test_users_are_found_as_container_runtimes_find_them(
    resolve: Resolve, spec: str, found: str
) -> None:
    assert resolve(spec) == found


@pytest.mark.parametrize(
    "spec", ["nobody", "app:nogroup", "long", "big", "-1", "4294967295", "x" * 300, "broken"]
)
def test_users_that_are_not_there_are_refused(resolve: Resolve, spec: str) -> None:
    assert resolve(spec).startswith("refused: ")
