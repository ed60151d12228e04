"""The jail's own small programs: C beside this file, compiled once and linked statically."""

import hashlib
import tempfile
from pathlib import Path

from ironworks.model.errors import FailedPrecondition
from ironworks.runtime.process import run

COMPILER = "musl-gcc"
COMPILE_TIMEOUT_SECONDS = 60.0
_FLAGS = ("-static", "-s", "-Os", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
# Debian keeps the kernel's headers where musl's compiler does not look.
_HEADERS = ("-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu")


async def build(directory: Path, source: Path, *, name: str, header: str = "") -> Path:
    """Return the program's path below `directory`, compiling it first if anything of it changed.

    Args:
        directory: Made if it is missing.
        source: One file of C.
        name: The first part of the program's name; the rest says what it was made of.
        header: C that stands before the source.

    Raises:
        FailedPrecondition: there is no compiler, or no place to write to.
    """
    facts = source.read_bytes() + " ".join((*_FLAGS, header)).encode()
    target = directory / f"{name}-{hashlib.sha256(facts).hexdigest()[:16]}"
    if target.exists():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
            built, first = f"{scratch}/built", f"{scratch}/first.h"
            Path(first).write_text(header)
            done = await run(
                [COMPILER, *_FLAGS, *_HEADERS, "-include", first, "-o", built, str(source)],
                timeout_seconds=COMPILE_TIMEOUT_SECONDS,
                check=False,
            )
            if done.status:
                raise FailedPrecondition(
                    f"The {name} of VMMs does not compile.", hint=done.stderr_tail
                )
            Path(built).replace(target)
    except OSError as error:
        raise FailedPrecondition(
            f"The directory {directory} cannot be written: {error.strerror}.", hint="Run as root."
        ) from error
    return target
