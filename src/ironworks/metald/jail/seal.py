"""The seal: puts `seccomp.jail_filter` around a VMM that another program jails."""

import struct
from pathlib import Path

from ironworks.metald.jail.programs import build
from ironworks.metald.jail.seccomp import jail_filter

SOURCE = Path(__file__).parent / "seal.c"
_INSTRUCTION = struct.Struct("=HBBI")


async def build_seal(directory: Path, *, name: str, vmm: str) -> Path:
    """Return the path of a program that seals itself and becomes another; see `programs.build`.

    Args:
        directory: Where it is kept.
        name: What its own name begins with.
        vmm: Path of the program that it becomes, where it runs.

    Raises:
        FailedPrecondition: as `build`.
    """
    instructions = _INSTRUCTION.iter_unpack(jail_filter())
    lines = (f"{{{code}, {yes}, {no}, {value}u}}" for code, yes, no, value in instructions)
    header = f'#define VMM "{vmm}"\n#define FILTER {{{", ".join(lines)}}}\n'
    return await build(directory, SOURCE, name=name, header=header)
