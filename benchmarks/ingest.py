"""ingest: samples through billaged's disk and aggregatord into chDB, against chDB alone.

Ours: ticks of 1,000 VMs, as metald sends them, go into billaged (write-ahead log, rings, windows,
batches on disk), over RPC into aggregatord, a process of its own (validation, raw samples, ledger),
and are rolled up to hours and days. The clock runs from the first tick of a piece until aggregatord
has acknowledged all its windows; making the ticks is not in it, decoding them is. In the end the
hours and days of everything are computed, in it too. The reference writes the same rows straight
into an empty `raw_samples` of the same schema. The two alternate, piece by piece.

Nothing may be lost or doubled: rows are counted in aggregatord's tables after it has ended, and
what hours say was used is compared with what the counters have grown by.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from protobuf import Oneof
from pyqwest import Client, HTTPTransport

from benchmarks.frame import Benchmark, Outcome, median, spread
from benchmarks.metering_rows import MEMORY_BYTES, TICK_NS, VCPUS, Fleet, Rows, columns
from ironworks.aggregatord.schema import tables
from ironworks.aggregatord.types import READINGS, AggregatordSettings
from ironworks.billaged.app import Collector
from ironworks.billaged.service import SUBMIT_SECONDS
from ironworks.billaged.types import BillagedSettings
from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_connect import BatchServiceClient
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageServiceClient
from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.model.errors import DeadlineExceeded, IronError
from ironworks.model.units import NS_PER_DAY, NS_PER_SECOND
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.identity import ServiceSigner, ensure_service_keys
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.rpc.direct import DIRECT
from ironworks.runtime.tasks import Tasks
from ironworks.storage.clickhouse import ChdbEngine
from ironworks.testkit.gatewayd import free_port

GOAL_RATE = 300_000
GOAL_RATIO = 0.25
VMS = 1_000
PIECE_TICKS = 2_000
PIECES = 10
QUICK_PIECES = 2
"""2,000 ticks of 1,000 VMs are 2 M samples: ten pieces are the 20 M."""
CUT_TICKS = 100
SETTLE_TRIES = 24_000
REFERENCE_ROWS = 60_000
START_SECONDS = 60.0
_CLOCK = SystemClock()
_OK = 200


@dataclass(slots=True)
class Pipeline:
    """billaged here, aggregatord beside."""

    collector: Collector
    fleet: Fleet
    url: str
    queue: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(64))
    durable: int = 0
    taking: asyncio.Task[None] | None = None

    async def requests(self) -> AsyncIterator[meter_pb.StreamMetricsRequest]:
        """What the sampler says, decoded as the server of the stream does."""
        while message := await self.queue.get():
            yield meter_pb.StreamMetricsRequest.from_binary(message)

    async def take(self) -> None:
        """billaged's side of the stream."""
        async for ordinal in self.collector.stream(self.requests()):
            self.durable = ordinal

    async def ship(self) -> None:
        """Send what is closed."""
        while True:
            with suppress(IronError):
                await self.collector.shipper.ship()
            await asyncio.sleep(0.02)

    async def taken(self, ordinal: int) -> None:
        """Everything up to a tick is on billaged's disk."""
        while self.durable < ordinal:
            if self.taking is not None and self.taking.done():
                await self.taking
            await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """All closed windows are acknowledged by aggregatord."""
        for _ in range(SETTLE_TRIES):
            if not self.collector.outbox.waiting:
                return
            await asyncio.sleep(0.01)
        raise DeadlineExceeded("aggregatord did not acknowledge in time.")


def hello(fleet: Fleet) -> bytes:
    """The beginning of the stream."""
    attached = [
        samples_pb.VmAttachment(
            slot=slot,
            vm_id=vm_id,
            tenant_id="tnt_bench",
            boot_epoch=1,
            vcpus=VCPUS,
            memory_bytes=MEMORY_BYTES,
            disk_bytes=MEMORY_BYTES,
            first_seq=1,
        )
        for slot, vm_id in enumerate(fleet.vm_ids)
    ]
    said = meter_pb.StreamHello(
        host_id="hst_bench",
        host_boot_id="boot",
        run_id="run",
        attached=attached,
        tick_ns=TICK_NS,
    )
    return meter_pb.StreamMetricsRequest(message=Oneof("hello", said)).to_binary()


def ticks(rows: Rows) -> list[bytes]:
    """Messages of the stream, one a tick."""
    vms, count = rows.shape
    slots = list(range(vms))
    offsets = rows.offset_us.T.astype("<i4")
    readings = np.stack([rows.values[name].T for name in READINGS], 1).astype("<u8")
    made: list[bytes] = []
    for index in range(count):
        tick = samples_pb.Tick(
            seq=rows.first_seq + index,
            at_ns=rows.start_at_ns + index * TICK_NS,
            slots=slots,
            offsets=offsets[index].tobytes(),
            readings=readings[index].tobytes(),
        )
        request = meter_pb.StreamMetricsRequest(ordinal=tick.seq, message=Oneof("tick", tick))
        made.append(request.to_binary())
    return made


@asynccontextmanager
async def aggregatord(directory: Path, settings: BillagedSettings) -> AsyncGenerator[None]:
    """aggregatord as a process, until the block ends."""
    environment = {
        **os.environ,
        "IRONWORKS_DATA_DIR": str(directory),
        "IRONWORKS_AGGREGATORD_URL": settings.aggregatord_url,
        "IRONWORKS_LOG_LEVEL": "WARNING",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ironworks.aggregatord", env=environment
    )
    try:
        http = Client(HTTPTransport(proxy=DIRECT))
        for _ in range(int(START_SECONDS / 0.1)):
            with suppress(OSError):
                answer = await http.execute("GET", f"{settings.aggregatord_url}/readyz")
                if answer.status == _OK:
                    break
            await asyncio.sleep(0.1)
        else:
            raise DeadlineExceeded("aggregatord did not start.")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


@asynccontextmanager
async def pipeline(directory: Path) -> AsyncGenerator[Pipeline]:
    """billaged and aggregatord on one data directory."""
    ensure_service_keys(directory)
    settings = BillagedSettings(
        data_dir=directory, aggregatord_url=f"http://127.0.0.1:{free_port()}"
    )
    signer = ServiceSigner.load(directory, "billaged", settings.trust_domain, _CLOCK)
    clients = Clients(settings=settings, signer=signer)
    collector = Collector(
        directory=directory / "billaged",
        settings=settings,
        batches=clients.of(BatchServiceClient, "aggregatord", timeout_seconds=SUBMIT_SECONDS),
        clock=_CLOCK,
    )
    collector.open()
    now_ns = _CLOCK.now_ns()
    begin_ns = now_ns - (PIECES + 1) * PIECE_TICKS * TICK_NS
    async with aggregatord(directory, settings), Tasks() as tasks:
        made = Pipeline(collector, Fleet(VMS, begin_ns), settings.aggregatord_url)
        jobs = [made.take(), made.ship()]
        running = [tasks.start(job, name="ingest") for job in jobs]
        made.taking = running[0]
        await made.queue.put(hello(made.fleet))
        try:
            yield made
        finally:
            for task in running:
                task.cancel()
    await collector.close()


async def feed(on: Pipeline, messages: Sequence[bytes], last_seq: int) -> float:
    """Seconds from the first tick until everything closed is acknowledged."""
    began_ns = _CLOCK.monotonic_ns()
    first_seq = last_seq - len(messages) + 1
    for seq, message in enumerate(messages, first_seq):
        await on.queue.put(message)
        if seq % CUT_TICKS == 0:
            # In real time there are a hundred milliseconds between two ticks; here the rings would
            # be full before anybody closed a window.
            await on.taken(seq)
            await on.collector.cut()
    await on.taken(last_seq)
    await on.collector.cut()
    await on.settled()
    return (_CLOCK.monotonic_ns() - began_ns) / NS_PER_SECOND


async def write_reference(engine: ChdbEngine, fleet: Fleet, rows: Rows) -> float:
    """Seconds for the same rows straight into chDB."""
    step = max(1, REFERENCE_ROWS // rows.shape[1])
    took_ns = 0
    for first in range(0, rows.shape[0], step):
        part = slice(first, first + step)
        block = columns(
            fleet.vm_ids[part],
            Rows(
                first_seq=rows.first_seq,
                start_at_ns=rows.start_at_ns,
                offset_us=rows.offset_us[part],
                values={name: column[part] for name, column in rows.values.items()},
            ),
        )
        began_ns = _CLOCK.monotonic_ns()
        await engine.insert("raw_samples", block)
        took_ns += _CLOCK.monotonic_ns() - began_ns
    return took_ns / NS_PER_SECOND


async def finish(on: Pipeline, directory: Path) -> tuple[float, int]:
    """Close the last windows and roll everything up; answers seconds and CPU time used."""
    signer = ServiceSigner.load(directory, "gatewayd", "ironworks.local", _CLOCK)
    asking = Clients(
        settings=BillagedSettings(data_dir=directory, aggregatord_url=on.url), signer=signer
    )
    began_ns = _CLOCK.monotonic_ns()
    await on.collector.flush([])
    usage = asking.of(UsageServiceClient, "aggregatord", tenant_id="tnt_bench", timeout_seconds=120)
    day_ns = _CLOCK.now_ns() // NS_PER_DAY * NS_PER_DAY
    answer = await usage.get_usage(
        usage_pb.GetUsageRequest(
            filter=usage_pb.UsageFilter(meters=[usage_pb.Meter.VCPU_USED]),
            interval=usage_pb.Interval(from_ns=day_ns - 2 * NS_PER_DAY, to_ns=day_ns + NS_PER_DAY),
        )
    )
    took = (_CLOCK.monotonic_ns() - began_ns) / NS_PER_SECOND
    return took, sum(int(row.quantity) for row in answer.rows)


async def counted(directory: Path) -> tuple[int, int]:
    """Rows and distinct samples in aggregatord's table, after it has ended."""
    engine = ChdbEngine(directory / "aggregatord" / "usage")
    await engine.open()
    try:
        rows = await engine.rows("SELECT count(), uniqExact(vm_id, seq) FROM raw_samples")
    finally:
        await engine.close()
    return rows[0][0], rows[0][1]


async def measure(quick: bool) -> Outcome:  # noqa: FBT001 - the frame's signature
    """Feed pieces, alternately with the reference; count."""
    pieces = QUICK_PIECES if quick else PIECES
    ours: list[float] = []
    reference: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as name:
        directory = Path(name)
        plain = ChdbEngine(directory / "reference")
        await plain.open()
        raw, *_ = tables(AggregatordSettings(data_dir=directory))
        await plain.prepare(raw.on_one_server())
        expected_ns = last_ns = 0
        async with pipeline(directory) as on:
            for _ in range(pieces):
                rows = on.fleet.grow(PIECE_TICKS)
                if not expected_ns:
                    expected_ns -= int(rows.values["cpu_ns"][:, 0].sum())
                ours.append(await feed(on, ticks(rows), rows.first_seq + PIECE_TICKS - 1))
                reference.append(await write_reference(plain, on.fleet, rows))
                last_ns = int(rows.values["cpu_ns"][:, -1].sum())
            last, used_ns = await finish(on, directory)
        await plain.close()
        expected_ns += last_ns
        stored, distinct = await counted(directory)
    samples = pieces * PIECE_TICKS * VMS
    rate, bare = samples / (sum(ours) + last), samples / sum(reference)
    lost, doubled = samples - distinct, stored - distinct
    return Outcome(
        ours=rate,
        reference=bare,
        passed=rate >= GOAL_RATE
        and rate >= GOAL_RATIO * bare
        and (lost, doubled, used_ns - expected_ns) == (0, 0, 0),
        details={
            "samples": samples,
            "lost": lost,
            "doubled": doubled,
            "cpu_ns_off": used_ns - expected_ns,
            "piece_seconds_median": round(median(ours), 2),
            "piece_seconds_spread": spread(ours),
            "last_windows_and_rollup_seconds": round(last, 2),
            "reference_seconds_spread": spread(reference),
        },
    )


BENCHMARK = Benchmark(
    name="ingest",
    unit="samples/s",
    goal=f">= {GOAL_RATE} samples/s and >= {GOAL_RATIO} x chDB alone; 0 lost, 0 doubled",
    measure=measure,
)
