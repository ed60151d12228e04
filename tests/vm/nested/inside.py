"""Runs within the nested VM: one driver through a VM's whole life, with KVM; prints JSON lines.

`python inside.py qemu` or `python inside.py firecracker`. Not a test: test_nested.py starts it
there, and judges what it prints.
"""

# ruff: noqa: T201 - its output is read by the test

import asyncio
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from ironworks.metald.drivers.driver import Handle
from ironworks.testkit.rooms import make_rootfs

CONFORMANCE = Path(__file__).parents[2] / "conformance/metald/drivers/conftest.py"
STEP_SECONDS = 900.0


def load(path: Path) -> ModuleType:
    """The conformance suite's places for VMs, which are plain functions below their fixtures."""
    spec = importlib.util.spec_from_file_location("places", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["places"] = module
    spec.loader.exec_module(module)
    return module


def say(**facts: object) -> None:
    """One line of the report."""
    print("nested: " + json.dumps(facts), flush=True)


async def page(address: str) -> str:
    """The guest's answer; asked until somebody listens."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(address, 8080)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            if answer:
                return answer.split(b"\r\n")[0].decode()
        except OSError:
            await asyncio.sleep(0.1)


async def ready(handle: Handle) -> None:
    """Boot up to the workload."""
    await handle.boot()
    await handle.wait_ready()


async def life(kind: str) -> None:
    """Create, boot to HTTP 200, pause, resume, metrics, reboot, shutdown, delete."""
    places = load(CONFORMANCE)
    scratch = Path(tempfile.mkdtemp())
    (scratch / "rootfs").mkdir()
    (scratch / "place").mkdir()
    rootfs = make_rootfs(scratch / "rootfs")
    kinds = {"qemu": places.QEMU, "firecracker": places.FIRECRACKER}
    make_place = places.place._get_wrapped_function()
    made = make_place(kinds[kind], scratch / "place", rootfs)
    place = await anext(made)
    driver = place.driver()
    probe = await driver.probe()
    say(step="probe", available=probe.available, accel=probe.accel, sentence=probe.sentence)
    first = await driver.create(place.spec)
    say(step="create", details=dict(first.evidence.details))
    await ready(first)
    say(step="boot", http=await page(place.address))
    before = await first.block_counters()
    await first.pause()
    say(step="pause")
    await first.resume()
    say(step="resume", http=await page(place.address))
    memory = await first.guest_memory()
    after = await first.block_counters()
    say(
        step="metrics",
        read_bytes=after.read_bytes,
        grows=after.read_bytes >= before.read_bytes > 0,
        memory_bytes=memory.total_bytes,
    )
    await first.close()
    second = await driver.reboot(place.spec, first.evidence)
    await ready(second)
    say(step="reboot", http=await page(place.address), fresh=second.evidence != first.evidence)
    await second.shutdown()
    report = await second.wait()
    say(step="shutdown", kind=report.kind, status=report.workload_status)
    await second.close()
    await driver.destroy(place.spec.jail_dir, second.evidence)
    left = sorted(place.files() - {"kernel", "initrd", "rootfs"})
    say(step="delete", left=left, processes=sorted(place.pids()))
    await made.aclose()


async def main() -> None:
    """Bounded as a whole."""
    async with asyncio.timeout(STEP_SECONDS):
        await life(sys.argv[1])


if __name__ == "__main__":
    asyncio.run(main())
