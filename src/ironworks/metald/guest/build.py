"""Builds the guest once: Debian's cloud kernel as it is, and an initrd of ours with its modules.

The result stands in `<dir>/<kernel version>-<inputs>/`: `vmlinuz`, `initrd.img` and
`manifest.json`. It is found again without network and within milliseconds for as long as neither
init's sources nor the list of modules nor this builder change; the kernel package stays in
`<dir>/packages`, so that a changed init needs no network either. Guests of other versions of
Ironworks stand beside it, `MAX_GUESTS` in all. Nothing is ever installed on the host.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from ironworks.metald.guest.cpio import Entry, write_archive
from ironworks.metald.guest.modules import STAGES, Module, ModuleError, resolve
from ironworks.metald.jail.keeper import build_keeper
from ironworks.model.errors import FailedPrecondition, IronError, Unavailable
from ironworks.runtime.process import run

DEFAULT_DIR = Path("/var/cache/ironworks/guest")
META_PACKAGE = "linux-image-cloud-amd64"
MIN_FREE_BYTES = 512 * 1024 * 1024
DOWNLOAD_TIMEOUT_SECONDS = 600.0
TOOL_TIMEOUT_SECONDS = 120.0
MAX_GUESTS = 8
"""Guests that are kept; the oldest go first."""
BUILDER_VERSION = 2
"""Counted up when this module writes something else from the same sources."""

_COMPILER = "musl-gcc"
_FLAGS = (
    "-static",
    "-s",
    "-Os",
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffunction-sections",
    "-Wl,--gc-sections",
)
_PACKAGE_NAME = re.compile(r"linux-image-(?P<version>[0-9][0-9a-zA-Z.+~-]{0,100})")
_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltFile:
    """A file of the guest: its name in the guest's directory, its size and its SHA-256."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A built guest.

    Attributes:
        directory: Where the files are.
        kernel_version: As `uname -r` says in the guest.
        package: File name of Debian's package that the kernel came from.
        inputs_sha256: Names the sources of init, the list of modules and the builder.
        kernel: A bzImage.
        initrd: Init and the modules it loads.
        modules: What init loads, by stage, in order.
    """

    directory: Path
    kernel_version: str
    package: str
    inputs_sha256: str
    kernel: BuiltFile
    initrd: BuiltFile
    modules: tuple[Module, ...]

    @property
    def kernel_path(self) -> Path:
        """The kernel's path."""
        return self.directory / self.kernel.name

    @property
    def initrd_path(self) -> Path:
        """The initrd's path."""
        return self.directory / self.initrd.name


def default_source_dir() -> Path:
    """Directory of init's sources: `guest/` of the repository, or of the installed package."""
    installed = Path(__file__).resolve().parent / "init"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[4] / "guest"


def _sources(source_dir: Path) -> list[Path]:
    found = sorted(path for path in source_dir.glob("*.[ch]") if path.is_file())
    if not any(path.suffix == ".c" for path in found):
        raise FailedPrecondition(
            f"The sources of the guest's init are not in {source_dir}.",
            hint="Run this from a whole checkout of Ironworks.",
        )
    return found


def inputs_sha256(source_dir: Path) -> str:
    """Hash of all that decides what the initrd holds, but for the kernel."""
    digest = hashlib.sha256()
    digest.update(json.dumps([BUILDER_VERSION, _FLAGS, dict(STAGES)]).encode())
    for path in _sources(source_dir):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _version_key(version: str) -> list[tuple[int, str]]:
    """Orders versions by their numbers: 6.1.0-9 before 6.1.0-10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.findall(r"\d+|\D+", version)
    ]


def _load(directory: Path) -> Guest | None:
    """The guest in a directory, or None if it is not whole."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        guest = Guest(
            directory=directory,
            kernel_version=manifest["kernel_version"],
            package=manifest["package"],
            inputs_sha256=manifest["inputs_sha256"],
            kernel=BuiltFile(**manifest["kernel"]),
            initrd=BuiltFile(**manifest["initrd"]),
            modules=tuple(Module(**one) for one in manifest["modules"]),
        )
        whole = all(
            (directory / one.name).stat().st_size == one.size_bytes
            for one in (guest.kernel, guest.initrd)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return guest if whole else None


def find(guest_dir: Path = DEFAULT_DIR, *, source_dir: Path | None = None) -> Guest | None:
    """The newest kernel's guest that was built from these very sources; None if there is none."""
    wanted = inputs_sha256(source_dir or default_source_dir())
    guests = [guest for path in guest_dir.glob("*/manifest.json") if (guest := _load(path.parent))]
    return max(
        (guest for guest in guests if guest.inputs_sha256 == wanted),
        key=lambda guest: _version_key(guest.kernel_version),
        default=None,
    )


@contextlib.contextmanager
def _only_builder(guest_dir: Path) -> Generator[None]:
    """Hold the directory's lock: two builders at once would do the work twice."""
    try:
        guest_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(guest_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FailedPrecondition(
            f"The guest directory {guest_dir} cannot be written: {error.strerror}.",
            hint="Run as root, or name another directory with --dir.",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cached_package(packages: Path) -> Path | None:
    found = [path for path in packages.glob("linux-image-*.deb") if path.stat().st_size]
    return max(found, key=lambda path: _version_key(path.name), default=None)


async def _download(packages: Path) -> Path:
    """Fetch the kernel package that Debian's meta package stands for at present."""
    listing = await run(
        ["apt-cache", "depends", META_PACKAGE], timeout_seconds=TOOL_TIMEOUT_SECONDS, check=False
    )
    names = _PACKAGE_NAME.findall(listing.stdout.decode(errors="replace").replace(META_PACKAGE, ""))
    if not names:
        raise FailedPrecondition(
            f"Debian's package lists do not name {META_PACKAGE}, from which the guest is built.",
            hint="Run `apt-get update` on a Debian 12 machine of architecture amd64, then again.",
            context={"stderr": listing.stderr_tail},
        )
    name = f"linux-image-{names[0]}"
    _log.info("guest_kernel_download", package=name)
    with tempfile.TemporaryDirectory(dir=packages) as scratch:
        done = await run(
            ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name],
            timeout_seconds=DOWNLOAD_TIMEOUT_SECONDS,
            check=False,
            cwd=Path(scratch),
        )
        file = _cached_package(Path(scratch))
        if done.status or file is None:
            raise Unavailable(
                f"Debian's package {name} could not be downloaded.",
                hint="Check the network and run `apt-get update`, then repeat.",
                context={"stderr": done.stderr_tail},
            )
        return file.replace(packages / file.name)


async def _compile(source_dir: Path, output: Path) -> None:
    sources = [str(path) for path in _sources(source_dir) if path.suffix == ".c"]
    try:
        done = await run(
            [_COMPILER, *_FLAGS, "-o", str(output), *sources],
            timeout_seconds=TOOL_TIMEOUT_SECONDS,
            check=False,
        )
    except FailedPrecondition as error:
        raise FailedPrecondition(
            "The guest's init cannot be compiled: musl-gcc is not installed.",
            hint="Run `apt-get install musl-tools`.",
        ) from error
    if done.status:
        raise FailedPrecondition(
            "The guest's init does not compile.", hint=done.stderr_tail, context={"argv": done.argv}
        )


async def _extract(package: Path, tree: Path) -> str:
    """Unpack a kernel package; returns the kernel's version."""
    await run(["dpkg-deb", "-x", str(package), str(tree)], timeout_seconds=TOOL_TIMEOUT_SECONDS)
    versions = [path.name for path in (tree / "lib/modules").glob("*")]
    if len(versions) != 1 or not (tree / "boot" / f"vmlinuz-{versions[0]}").is_file():
        raise FailedPrecondition(
            f"The package {package.name} does not hold one kernel with its modules.",
            hint=f"Delete {package}, then repeat.",
        )
    await run(["depmod", "-b", str(tree), versions[0]], timeout_seconds=TOOL_TIMEOUT_SECONDS)
    return versions[0]


async def _strip(modules: Sequence[Module], module_dir: Path) -> None:
    """Take out of the modules what only costs time at boot.

    Type information for BPF is parsed as a module loads, and a signature is verified: guest/README
    has the measurement. What the host puts into the initrd is trusted by its place.
    """
    for path in dict.fromkeys(module.path for module in modules):
        await run(
            ["objcopy", "--strip-debug", "--remove-section=.BTF", str(module_dir / path)],
            timeout_seconds=TOOL_TIMEOUT_SECONDS,
        )


def initrd_entries(init: bytes, modules: Sequence[Module], module_dir: Path) -> list[Entry]:
    """Members of the initrd: init, the console that the kernel opens for it, modules, a list."""
    entries = [
        Entry.directory("dev"),
        Entry.character_device("dev/console", 5, 1, 0o600),
        Entry.file("init", init, 0o755),
        Entry.directory("modules"),
    ]
    for path in dict.fromkeys(module.path for module in modules):
        name = f"modules/{Path(path).name}"
        entries.append(Entry.file(name, (module_dir / path).read_bytes()))
    lines = [f"{module.stage} /modules/{Path(module.path).name}\n" for module in modules]
    entries.append(Entry.file("modules.list", "".join(lines).encode()))
    return entries


def _write(path: Path, content: bytes) -> BuiltFile:
    """Write a file and bring it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return BuiltFile(
        name=path.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


async def _assemble(package: Path, source_dir: Path, inputs: str, scratch: Path) -> Guest:
    """Make all files of a guest in `scratch/out`."""
    tree, out, init = scratch / "tree", scratch / "out", scratch / "init"
    out.mkdir()
    await _compile(source_dir, init)
    version = await _extract(package, tree)
    module_dir = tree / "lib/modules" / version
    try:
        modules = resolve(
            STAGES,
            modules_dep=(module_dir / "modules.dep").read_text(),
            modules_builtin=(module_dir / "modules.builtin").read_text(),
        )
    except ModuleError as error:
        raise FailedPrecondition(str(error)) from error
    await _strip(modules, module_dir)
    archive = write_archive(initrd_entries(init.read_bytes(), modules, module_dir))
    guest = Guest(
        directory=out,
        kernel_version=version,
        package=package.name,
        inputs_sha256=inputs,
        kernel=_write(out / "vmlinuz", (tree / "boot" / f"vmlinuz-{version}").read_bytes()),
        initrd=_write(out / "initrd.img", archive),
        modules=modules,
    )
    manifest = asdict(guest)
    del manifest["directory"]
    _write(out / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    return guest


def _publish(out: Path, target: Path) -> None:
    """Put a finished directory in its place; a stale one goes first, and a reader finds none."""
    if target.exists():
        stale = out.parent / "stale"
        target.rename(stale)
    out.rename(target)
    out.parent.chmod(0o755)


def _forget_old(guest_dir: Path) -> None:
    """Remove the oldest guests beyond `MAX_GUESTS`."""
    manifests = sorted(guest_dir.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    for manifest in manifests[: max(0, len(manifests) - MAX_GUESTS)]:
        shutil.rmtree(manifest.parent)


async def build(
    guest_dir: Path = DEFAULT_DIR, *, source_dir: Path | None = None, refresh: bool = False
) -> Guest:
    """Return the built guest, building it first if it is not there.

    Args:
        guest_dir: Where guests and downloaded packages are kept.
        source_dir: Init's sources; ours if None.
        refresh: Ask Debian for a newer kernel even if there is a guest.

    Raises:
        FailedPrecondition: a tool, the sources, a kernel or disk space is missing; says which.
        Unavailable: the kernel package could not be downloaded.
    """
    sources = source_dir or default_source_dir()
    if not refresh and (found := find(guest_dir, source_dir=sources)):
        return found
    with _only_builder(guest_dir):
        if not refresh and (found := find(guest_dir, source_dir=sources)):
            return found
        free_bytes = shutil.disk_usage(guest_dir).free
        if free_bytes < MIN_FREE_BYTES:
            raise FailedPrecondition(
                f"The disk of {guest_dir} has {free_bytes >> 20} MiB free; building the guest "
                f"takes {MIN_FREE_BYTES >> 20} MiB.",
                hint="Free some space, or name another directory with --dir.",
            )
        packages = guest_dir / "packages"
        packages.mkdir(exist_ok=True)
        package = None if refresh else _cached_package(packages)
        package = package or await _download(packages)
        with tempfile.TemporaryDirectory(dir=guest_dir, prefix=".build-") as scratch:
            inputs = inputs_sha256(sources)
            guest = await _assemble(package, sources, inputs, Path(scratch))
            target = guest_dir / f"{guest.kernel_version}-{inputs[:12]}"
            _publish(guest.directory, target)
            _forget_old(guest_dir)
    built = _load(target)
    if built is None:
        raise FailedPrecondition(f"The guest in {guest_dir} is not whole after it was built.")
    _log.info("guest_built", kernel=built.kernel_version, initrd_bytes=built.initrd.size_bytes)
    return built


def build_now(guest_dir: Path = DEFAULT_DIR, *, refresh: bool = False) -> Guest | IronError:
    """`build` for a program without an event loop; gives back the error instead of raising it.

    Builds the keeper of VMMs too, which needs the same compiler and is kept beside the guest.
    """

    async def both() -> Guest:
        guest = await build(guest_dir, refresh=refresh)
        await build_keeper(guest_dir)
        return guest

    try:
        return asyncio.run(both())
    except IronError as error:
        return error
