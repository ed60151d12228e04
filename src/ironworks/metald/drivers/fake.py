"""The fake driver: a small real process in the VM's real namespace and cgroup, no guest.

For load and fault tests. Its workload answers HTTP 200 on `PORT` (default 8080) and does nothing
else. Failures are injected by `Steps`, or by variables of the workload's environment, so that they
can be ordered through the API too:

| variable | effect |
|---|---|
| `IW_FAKE_FAIL_AT=vmm.spawn` | the step of this name fails |
| `IW_FAKE_READY_AFTER_SECONDS=1.5` | the guest is ready that late |
| `IW_FAKE_NEVER_READY=1` | it never is |
| `IW_FAKE_EXIT_AFTER_SECONDS=2` | the workload ends by itself so long after the boot |
| `IW_FAKE_EXIT_STATUS=3` | with this status |
| `IW_FAKE_IGNORE_SHUTDOWN=1` | it does not obey `shutdown` |
"""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ironworks.metald.drivers import fake_guest
from ironworks.metald.drivers.driver import (
    Accel,
    BlockCounters,
    Capabilities,
    DriverError,
    DriverKind,
    Evidence,
    ExitKind,
    ExitReport,
    GuestEndedError,
    GuestMemory,
    Probe,
    VmmSpec,
    signal_name,
)
from ironworks.metald.drivers.processes import (
    VmmProcess,
    boot_id,
    is_alive,
    is_stopped,
    mark_reboot,
    tail,
)
from ironworks.metald.drivers.sockets import connect
from ironworks.metald.network import namespace, naming
from ironworks.metald.network.links import LinkError, Links, set_sysctls
from ironworks.metald.steps import Step, Steps
from ironworks.runtime.clock import Clock
from ironworks.runtime.tasks import Tasks

DEFAULT_PORT = 8080
CONNECT_SECONDS = 10.0
CLOSE_TO_END_SECONDS = 1.0
_CONNECT_PERIOD_SECONDS = 0.005
_STOP_PERIOD_SECONDS = 0.001
_CONFIG, _SOCKET, _CONSOLE, _EXIT = "fake.json", "fake.sock", "console.log", "fake.exit"
_LASTING = (_CONSOLE,)
_NSENTER = "/usr/bin/nsenter"
_MAX_VCPUS = 32


class FakeHandle:
    """One fake VMM; see `driver.Handle`."""

    def __init__(self, process: VmmProcess, evidence: Evidence, steps: Steps) -> None:
        """Steer `process`."""
        self._process = process
        self._evidence = evidence
        self._steps = steps
        self._killed = False

    @property
    def evidence(self) -> Evidence:
        """See `Handle`."""
        return self._evidence

    @property
    def console_path(self) -> Path:
        """See `Handle`."""
        return self._evidence.jail_dir / _CONSOLE

    async def _reach(self, step: Step) -> None:
        await self._steps.reach(step, self._evidence.vm_id)
        if self._evidence.details.get("fail_at") == step:
            raise DriverError(step, f"The step {step} was made to fail.")

    async def boot(self) -> None:
        """See `Handle`."""
        await self._reach(Step.GUEST_START)
        await self._ask(Step.GUEST_START, "boot")

    async def wait_ready(self) -> None:
        """See `Handle`."""
        await self._reach(Step.GUEST_READY)
        async with Tasks() as tasks:
            asked = tasks.start(self._ask_ready(), name="fake ready")
            ended = tasks.start(self._process.wait(), name="fake end")
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            problem = asked.result() if asked.done() else None
            if problem is not None and not ended.done():
                # A socket that closes is the first sign of an end.
                await asyncio.wait({ended}, timeout=CLOSE_TO_END_SECONDS)
            if ended.done():
                raise GuestEndedError(self._report())
            if problem is not None:
                raise problem

    async def _ask_ready(self) -> DriverError | None:
        try:
            await self._ask(Step.GUEST_READY, "ready")
        except DriverError as error:
            return error
        return None

    async def pause(self) -> None:
        """See `Handle`."""
        await self._reach(Step.GUEST_PAUSE)
        self._process.send(signal.SIGSTOP)
        while not (is_stopped(self._evidence.pid) or self._process.ended):  # noqa: ASYNC110 - a signal tells nobody
            await asyncio.sleep(_STOP_PERIOD_SECONDS)

    async def resume(self) -> None:
        """See `Handle`."""
        await self._reach(Step.GUEST_RESUME)
        self._process.send(signal.SIGCONT)

    async def stands_still(self) -> bool:
        """See `Handle`."""
        return is_stopped(self._evidence.pid)

    async def shutdown(self) -> None:
        """See `Handle`."""
        await self._reach(Step.GUEST_SHUTDOWN)
        if not self._process.ended:
            await self._ask(Step.GUEST_SHUTDOWN, "shutdown")

    async def kill(self) -> None:
        """See `Handle`."""
        await self._reach(Step.VMM_KILL)
        self._killed = self._killed or not self._process.ended
        await self._process.kill()

    async def wait(self) -> ExitReport:
        """See `Handle`."""
        await self._process.wait()
        return self._report()

    async def block_counters(self) -> BlockCounters:
        """See `Handle`."""
        try:
            text = Path(f"/proc/{self._process.pid}/io").read_text(encoding="ascii")
        except OSError as error:
            raise DriverError(Step.GUEST_READY, "The fake VMM's counters are gone.") from error
        values = dict(line.split(": ") for line in text.splitlines())
        return BlockCounters(
            read_bytes=int(values["read_bytes"]),
            written_bytes=int(values["write_bytes"]),
            read_operations=int(values["syscr"]),
            write_operations=int(values["syscw"]),
        )

    async def guest_memory(self) -> GuestMemory:
        """See `Handle`; what its process has, for it is the guest."""
        try:
            text = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii")
        except OSError as error:
            raise DriverError(Step.METERING_ATTACH, "The fake VMM's memory is gone.") from error
        size, resident = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in text.split()[:2])
        return GuestMemory(total_bytes=size, available_bytes=size - resident)

    async def close(self) -> None:
        """See `Handle`."""
        self._process.close()

    async def _ask(self, step: Step, command: str) -> None:
        socket = self._evidence.jail_dir / _SOCKET
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connect(socket))
            try:
                writer.write(json.dumps({"command": command}).encode() + b"\n")
                await writer.drain()
                answer = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        except OSError as error:
            raise DriverError(step, "The fake VMM does not answer.", detail=str(error)) from error
        if not answer:
            raise DriverError(step, "The fake VMM ended before it answered.")

    def _report(self) -> ExitReport:
        return _report(
            self._evidence, status=self._process.status, killed=self._killed, watched=True
        )


class FakeDriver:
    """Starts fake VMMs; see `driver.Driver`."""

    def __init__(self, clock: Clock, steps: Steps) -> None:
        """Take the clock that waiting is measured by, and what is told of every step."""
        self._clock = clock
        self._steps = steps

    @property
    def kind(self) -> DriverKind:
        """See `Driver`."""
        return DriverKind.FAKE

    async def probe(self) -> Probe:
        """See `Driver`."""
        available = Path(_NSENTER).exists() and os.geteuid() == 0
        return Probe(
            kind=DriverKind.FAKE,
            available=available,
            accel=Accel.NONE,
            version="1",
            sentence="Runs a small process in place of a guest: for tests only."
            if available
            else "Needs root and util-linux's nsenter.",
            capabilities=Capabilities(
                pause=True,
                graceful_shutdown=True,
                block_counters=True,
                boots_bzimage=True,
                max_vcpus=_MAX_VCPUS,
                needs_kernel=False,
                memory_overhead_bytes=0,
            ),
        )

    async def create(self, spec: VmmSpec) -> FakeHandle:
        """See `Driver`."""
        return await self._create(spec, lasting=())

    async def reboot(self, spec: VmmSpec, evidence: Evidence) -> FakeHandle:
        """See `Driver`."""
        await self._end(evidence)
        await asyncio.to_thread(_remove_files, spec.jail_dir, _LASTING)
        await asyncio.to_thread(mark_reboot, spec.jail_dir / _CONSOLE)
        return await self._create(spec, lasting=_LASTING)

    async def _create(self, spec: VmmSpec, *, lasting: tuple[str, ...]) -> FakeHandle:
        env = dict(spec.guest.env)
        fail_at = env.get("IW_FAKE_FAIL_AT", "")
        process: VmmProcess | None = None
        try:
            for step in (Step.JAIL_PREPARE, Step.VMM_CONFIGURE):
                await self._reach(step, spec.vm_id, fail_at)
            await asyncio.to_thread(_prepare, spec, env)
            await self._reach(Step.VMM_SPAWN, spec.vm_id, fail_at)
            process = _spawn(spec)
            await self._reach(Step.VMM_CONNECT, spec.vm_id, fail_at)
            await self._connect(spec, process)
        except BaseException as error:
            if process is not None:
                await process.kill()
                process.close()
            shown = tail(spec.jail_dir / _CONSOLE)
            _remove_files(spec.jail_dir, lasting)
            if isinstance(error, OSError):
                raise DriverError(
                    Step.VMM_SPAWN,
                    "The fake VMM could not be started.",
                    detail=str(error),
                    console_tail=shown,
                ) from error
            raise
        evidence = Evidence(
            kind=DriverKind.FAKE,
            vm_id=spec.vm_id,
            pid=process.pid,
            pid_start_ticks=process.start_ticks,
            boot_id=boot_id(),
            jail_dir=spec.jail_dir,
            details={"fail_at": fail_at},
        )
        return FakeHandle(process, evidence, self._steps)

    async def _reach(self, step: Step, vm_id: str, fail_at: str) -> None:
        await self._steps.reach(step, vm_id)
        if fail_at == step:
            raise DriverError(step, f"The step {step} was made to fail.")

    async def _connect(self, spec: VmmSpec, process: VmmProcess) -> None:
        deadline_ns = self._clock.monotonic_ns() + int(CONNECT_SECONDS * 1e9)
        # It opens its socket while it is still root.
        while not ((spec.jail_dir / _SOCKET).exists() and _is_of(process.pid, spec.uid)):
            if process.ended or self._clock.monotonic_ns() > deadline_ns:
                raise DriverError(
                    Step.VMM_CONNECT,
                    "The fake VMM did not come up.",
                    console_tail=tail(spec.jail_dir / _CONSOLE),
                )
            await self._clock.sleep(_CONNECT_PERIOD_SECONDS)

    async def adopt(self, evidence: Evidence) -> FakeHandle | None:
        """See `Driver`."""
        if not is_alive(evidence):
            return None
        process = VmmProcess.adopt(evidence.pid, evidence.pid_start_ticks)
        return None if process is None else FakeHandle(process, evidence, self._steps)

    async def post_mortem(self, evidence: Evidence) -> ExitReport:
        """See `Driver`."""
        return _report(evidence, status=None, killed=False, watched=False)

    async def destroy(self, jail_dir: Path, evidence: Evidence | None) -> None:
        """See `Driver`."""
        if evidence is not None:
            await self._end(evidence)
        await asyncio.to_thread(_remove_files, jail_dir)

    async def _end(self, evidence: Evidence) -> None:
        if not is_alive(evidence):
            return
        process = VmmProcess.adopt(evidence.pid, evidence.pid_start_ticks)
        if process is not None:
            await process.kill()
            process.close()


def _is_of(pid: int, uid: int) -> bool:
    with contextlib.suppress(OSError):
        return f"\nUid:\t{uid}\t" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return False


def _prepare(spec: VmmSpec, env: Mapping[str, str]) -> None:
    config = {
        "hostname": spec.guest.hostname,
        "uid": spec.uid,
        "gid": spec.gid,
        "cgroup_join_paths": [str(path) for path in spec.cgroup_join_paths],
        "socket": str(spec.jail_dir / _SOCKET),
        "exit_file": str(spec.jail_dir / _EXIT),
        "port": int(env.get("PORT", str(DEFAULT_PORT))),
        "never_ready": "IW_FAKE_NEVER_READY" in env,
        "ready_after_seconds": float(env.get("IW_FAKE_READY_AFTER_SECONDS", "0")),
        "exit_after_seconds": float(env.get("IW_FAKE_EXIT_AFTER_SECONDS", "-1")),
        "exit_status": int(env.get("IW_FAKE_EXIT_STATUS", "0")),
        "ignore_shutdown": "IW_FAKE_IGNORE_SHUTDOWN" in env,
    }
    (spec.jail_dir / _CONFIG).write_text(json.dumps(config), encoding="utf-8")

    def address() -> None:
        # The guest's address lives in the namespace itself, for there is no guest behind the tap.
        with Links() as links:
            try:
                links.add_address("lo", naming.GUEST_ADDRESS, 32)
            except LinkError as error:
                # A reboot finds the address of the VMM before it.
                if error.number != errno.EEXIST:
                    raise
        set_sysctls((("ipv4/ip_unprivileged_port_start", "0"),))

    namespace.run_in(naming.NETNS_DIRECTORY / spec.netns, address)


def _spawn(spec: VmmSpec) -> VmmProcess:
    return VmmProcess.spawn(
        [
            _NSENTER,
            f"--net={naming.NETNS_DIRECTORY / spec.netns}",
            "--",
            sys.executable,
            "-I",
            "-S",
            str(Path(fake_guest.__file__)),
            str(spec.jail_dir / _CONFIG),
        ],
        output=spec.jail_dir / _CONSOLE,
    )


def _remove_files(jail_dir: Path, lasting: Collection[str] = ()) -> None:
    for name in (_CONFIG, _SOCKET, _EXIT, _CONSOLE):
        if name in lasting:
            continue
        path = jail_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _report(evidence: Evidence, *, status: int | None, killed: bool, watched: bool) -> ExitReport:
    jail_dir = evidence.jail_dir
    workload_status: int | None = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        text = (jail_dir / _EXIT).read_text(encoding="utf-8")
        workload_status = int(json.loads(text)["workload_status"])
    report = ExitReport(
        kind=ExitKind.LOST,
        sentence="The VMM ended while metald was not running; how is not known.",
        vmm_status=status,
        workload_status=workload_status,
        console_tail=tail(jail_dir / _CONSOLE),
    )
    if workload_status is not None:
        sentence = f"The workload ended with status {workload_status}."
        return replace(report, kind=ExitKind.WORKLOAD, sentence=sentence)
    if killed:
        return replace(report, kind=ExitKind.KILLED, sentence="The VMM was ended by force.")
    if status is None:
        lost = "The VMM ended; another metald had started it, so its status is not known."
        return replace(report, sentence=lost) if watched else report
    how = f"by {signal_name(-status)}" if status < 0 else f"with status {status}"
    return replace(report, kind=ExitKind.CRASHED, sentence=f"The VMM ended {how}.")
