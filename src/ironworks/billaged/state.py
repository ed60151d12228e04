"""The state of metering on this host: what the log's records add up to.

Live messages and replayed records go through the same methods, in the same order, so a restart
arrives where the process that died was. No method waits.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ironworks.billaged import decide
from ironworks.billaged.payload import event_name
from ironworks.billaged.rings import Rings, Rows
from ironworks.billaged.ticks import columns_of
from ironworks.billaged.types import (
    TICK_NS,
    WINDOW_NS,
    Provision,
    SeqGap,
    VmKey,
)
from ironworks.gen.ironworks.billaged.v1 import meter_pb, samples_pb
from ironworks.model.errors import InvalidRequest

KNOWN_EVENTS = 4_096
MAX_LOSSES = 10_000
STALE_TICKS = 6_000
"""Ten minutes. A VM that ended while metald was down is told of by nobody: one that the next metald
has not attached for so long is forgotten."""
UNREADABLE = int(samples_pb.GapReason.UNREADABLE)
_PAUSED = samples_pb.LifecycleEventType.PAUSED
_RESUMED = samples_pb.LifecycleEventType.RESUMED


@dataclass(slots=True, kw_only=True)
class VmRecord:
    """One boot epoch of one VM.

    Attributes:
        row: Its ring.
        provisions: What it has, from which sequence number on; the last is in force.
        attached_seq: First sequence number that is expected.
        last_seq: Highest sequence number that has come.
        covered_seq: Up to here every sample is in a window or a gap.
        run_id: The sampler's run that attached it last.
        losses: Declared losses of this VM alone.
        ended: Its last sample has come.
        paused: Its vCPUs stand still.
    """

    row: int
    provisions: list[tuple[int, Provision]]
    attached_seq: int
    last_seq: int
    covered_seq: int
    run_id: str
    losses: list[SeqGap] = field(default_factory=list[SeqGap])
    ended: bool = False
    paused: bool = False

    def provision_at(self, seq: int) -> Provision:
        """What the VM had when this sample was taken."""
        held = [provision for from_seq, provision in self.provisions if from_seq <= seq]
        return held[-1] if held else self.provisions[0][1]


@dataclass(slots=True)
class OpenMinute:
    """A minute with samples that are in no window."""

    last_seq: int
    first_segment: int


class MeterState:
    """See the module."""

    def __init__(self) -> None:
        self.rings = Rings()
        self.host_id = ""
        self.host_boot_id = ""
        self.run_id: str = ""
        self.ordinal = 0
        self.tick_ns = TICK_NS
        self.newest_seq = 0
        self.damaged_until_seq = -1
        self.slots: dict[int, VmKey] = {}
        self.vms: dict[VmKey, VmRecord] = {}
        self.open_minutes: dict[int, OpenMinute] = {}
        self.losses: list[SeqGap] = []
        self.events: dict[str, samples_pb.LifecycleEvent] = {}
        self.known_events: OrderedDict[str, None] = OrderedDict()
        self.ended: list[VmKey] = []
        self.samples_received = 0
        self.samples_duplicate = 0
        self._seen_slots: list[int] | None = None
        self._seen: tuple[Sequence[VmRecord], Rows] = ((), np.empty(0, np.intp))

    def apply_hello(self, hello: meter_pb.StreamHello) -> None:
        """A sampler has connected.

        Raises:
            InvalidRequest: it does not say who it is.
        """
        if not hello.host_id or not hello.host_boot_id or not hello.run_id:
            raise InvalidRequest("The hello must name host, boot and run.")
        if hello.host_boot_id != self.host_boot_id:
            # No VM outlives its host's kernel, and sequence numbers begin anew.
            for key, record in self.vms.items():
                self._end(key, record)
            self.newest_seq = 0
            self.losses.clear()
        if hello.run_id != self.run_id:
            self.ordinal = 0
            self.slots = {}
            self._seen_slots = None
        self.host_id, self.host_boot_id = hello.host_id, hello.host_boot_id
        self.run_id = hello.run_id
        self.tick_ns = hello.tick_ns or TICK_NS
        for attachment in hello.attached:
            self._attach(attachment)

    def _attach(self, attachment: samples_pb.VmAttachment) -> VmRecord:
        key = VmKey(attachment.vm_id, attachment.boot_epoch)
        if not key.vm_id or not attachment.tenant_id:
            raise InvalidRequest("An attachment must name VM and tenant.")
        provision = Provision(
            tenant_id=attachment.tenant_id,
            deployment_id=attachment.deployment_id,
            vcpus=attachment.vcpus,
            memory_bytes=attachment.memory_bytes,
            disk_bytes=attachment.disk_bytes,
        )
        first_seq = attachment.first_seq
        record = self.vms.get(key)
        if record is None:
            record = VmRecord(
                row=self.rings.allocate(),
                provisions=[(first_seq, provision)],
                attached_seq=first_seq,
                last_seq=first_seq - 1,
                covered_seq=first_seq - 1,
                run_id=self.run_id,
            )
            self.vms[key] = record
        elif first_seq > record.last_seq:
            if record.run_id != self.run_id and first_seq > record.last_seq + 1:
                record.losses.append(
                    SeqGap(
                        first_seq=record.last_seq + 1,
                        last_seq=first_seq - 1,
                        reason=int(samples_pb.GapReason.AGENT_DOWN),
                    )
                )
            if record.provisions[-1][1] != provision:
                record.provisions.append((first_seq, provision))
            record.ended = False
        record.run_id = self.run_id
        self.slots[attachment.slot] = key
        self._seen_slots = None
        return record

    def apply_tick(self, ordinal: int, tick: samples_pb.Tick, segment: int) -> bool:
        """One message of the stream. Answers whether it was new.

        Raises:
            InvalidRequest: it is malformed or names a slot that was not announced.
            ResourceExhausted: a ring is full.
        """
        if ordinal <= self.ordinal:
            self.samples_duplicate += len(tick.slots)
            return False
        begun = [self._attach(one) for one in tick.attached]
        fresh = [record for record in begun if record.last_seq < record.attached_seq]
        records, rows = self._records(tick.slots)
        stored = self.rings.put(columns_of(tick, rows))
        self.samples_received += stored
        self.samples_duplicate += len(records) - stored
        seq = tick.seq
        for record in records:
            if record.last_seq < seq:  # noqa: PLR1730 - a call for every sample is dear
                record.last_seq = seq
        self._note_losses(tick)
        if records:
            self._note_minute(tick, segment)
        self._note_lifecycle(tick, fresh)
        self.newest_seq = max(self.newest_seq, tick.seq)
        self.ordinal = ordinal
        return True

    def _records(self, slots: list[int]) -> tuple[Sequence[VmRecord], Rows]:
        """The VMs of a tick and their rings; nearly always those of the tick before."""
        if slots == self._seen_slots:
            return self._seen
        try:
            records = [self.vms[self.slots[slot]] for slot in slots]
        except KeyError:
            raise InvalidRequest("The tick names a slot that was not announced.") from None
        if len({id(record) for record in records}) != len(records):
            raise InvalidRequest("The tick has two samples of one VM.")
        self._seen = records, np.array([record.row for record in records], np.intp)
        self._seen_slots = slots
        return self._seen

    def _note_losses(self, tick: samples_pb.Tick) -> None:
        for loss in tick.losses:
            gap = SeqGap(first_seq=loss.first_seq, last_seq=loss.last_seq, reason=int(loss.reason))
            previous = self.losses[-1] if self.losses else None
            if (
                previous
                and previous.reason == gap.reason
                and previous.first_seq <= gap.first_seq <= previous.last_seq + 1
            ):
                gap = SeqGap(
                    first_seq=previous.first_seq,
                    last_seq=max(previous.last_seq, gap.last_seq),
                    reason=gap.reason,
                )
                self.losses.pop()
            self.losses.append(gap)
        del self.losses[:-MAX_LOSSES]

    def _note_minute(self, tick: samples_pb.Tick, segment: int) -> None:
        minute = decide.minute_of(tick.at_ns)
        opened = self.open_minutes.setdefault(minute, OpenMinute(tick.seq, segment))
        opened.last_seq = max(opened.last_seq, tick.seq)

    def _note_lifecycle(self, tick: samples_pb.Tick, fresh: list[VmRecord]) -> None:
        rows = {record.row for record in fresh}
        for attachment in tick.attached:
            key = VmKey(attachment.vm_id, attachment.boot_epoch)
            record = self.vms[key]
            if record.row in rows:
                self._tell(key, record, samples_pb.LifecycleEventType.STARTED, tick.at_ns)
            elif len(record.provisions) > 1 and record.provisions[-1][0] == attachment.first_seq:
                self._tell(key, record, samples_pb.LifecycleEventType.RESIZED, tick.at_ns)
            if attachment.paused != record.paused:
                record.paused = attachment.paused
                kind = _PAUSED if attachment.paused else _RESUMED
                self._tell(key, record, kind, tick.at_ns)
        for slot in tick.detached:
            key = self.slots.pop(slot, None)
            self._seen_slots = None
            if key is None or key not in self.vms:
                continue
            record = self.vms[key]
            self._tell(key, record, samples_pb.LifecycleEventType.STOPPED, tick.at_ns)
            self._end(key, record)

    def _end(self, key: VmKey, record: VmRecord) -> None:
        record.ended = True
        self.ended.append(key)

    def _tell(
        self, key: VmKey, record: VmRecord, kind: samples_pb.LifecycleEventType, at_ns: int
    ) -> None:
        provision = record.provisions[-1][1]
        self.apply_event(
            samples_pb.LifecycleEvent(
                vm_id=key.vm_id,
                tenant_id=provision.tenant_id,
                boot_epoch=key.boot_epoch,
                type=kind,
                at_ns=at_ns,
                vcpus=provision.vcpus,
                memory_bytes=provision.memory_bytes,
                disk_bytes=provision.disk_bytes,
            )
        )

    def apply_event(self, event: samples_pb.LifecycleEvent) -> bool:
        """A lifecycle event. Answers whether it was new."""
        name = event_name(event)
        if name in self.known_events:
            return False
        self.known_events[name] = None
        while len(self.known_events) > KNOWN_EVENTS:
            self.known_events.popitem(last=False)
        self.events[name] = event
        return True

    def apply_sealed(self, sealed: dict[str, Any]) -> None:
        """A batch is on disk: its samples and events are open no more."""
        for window in sealed["windows"]:
            key = VmKey(window["vm_id"], window["boot_epoch"])
            record = self.vms.get(key)
            if record is None:
                continue
            for first, last in window["runs"]:
                self.rings.mark(record.row, np.arange(int(first), int(last) + 1), sealed=True)
            record.losses += [
                SeqGap(first_seq=first, last_seq=last, reason=UNREADABLE)
                for first, last in window["unreadable"]
            ]
            covered = max(record.covered_seq, window["covered_seq"])
            record.covered_seq = covered
            record.losses = [gap for gap in record.losses if gap.last_seq > covered]
            held = [at for at in record.provisions if at[0] <= covered]
            record.provisions = held[-1:] + [at for at in record.provisions if at[0] > covered]
        for name in sealed["events"]:
            self.events.pop(name, None)
        self._forget()

    def _forget(self) -> None:
        """Let go of what is in batches entirely."""
        rows = [record.row for record in self.vms.values()]
        for minute in list(self.open_minutes):
            if not self.rings.has_open(rows, minute * WINDOW_NS, (minute + 1) * WINDOW_NS):
                del self.open_minutes[minute]
        attached = set(self.slots.values())
        for key, record in list(self.vms.items()):
            over = record.ended or (
                record.run_id != self.run_id and record.last_seq < self.newest_seq - STALE_TICKS
            )
            if over and key not in attached and not self.rings.open_times(record.row):
                self.rings.release(record.row)
                del self.vms[key]
        lowest = min((record.covered_seq for record in self.vms.values()), default=self.newest_seq)
        self.losses = [gap for gap in self.losses if gap.last_seq > lowest]

    def needed_segment(self, current: int) -> int:
        """The first segment of the log that an open window still needs."""
        return min([current, *[one.first_segment for one in self.open_minutes.values()]])

    def is_open(self, key: VmKey, seq: int) -> bool:
        """Whether this sample is held and in no window."""
        record = self.vms.get(key)
        if record is None or self.rings.is_new(record.row, seq):
            return False
        return self.rings.is_open(record.row, seq)

    def checkpoint(self) -> bytes:
        """Everything but the samples, which are in the log's records themselves."""
        return json.dumps(
            {
                "host_id": self.host_id,
                "host_boot_id": self.host_boot_id,
                "run_id": self.run_id,
                "ordinal": self.ordinal,
                "tick_ns": self.tick_ns,
                "newest_seq": self.newest_seq,
                "slots": [[slot, *key] for slot, key in self.slots.items()],
                "vms": [[*key, _record_to_json(record)] for key, record in self.vms.items()],
                "losses": [asdict(gap) for gap in self.losses],
                "events": [
                    base64.b64encode(event.to_binary()).decode() for event in self.events.values()
                ],
                "known_events": list(self.known_events),
            },
            separators=(",", ":"),
        ).encode()

    def restore(self, content: bytes) -> None:
        """Continue from a checkpoint; samples that are held already stay."""
        saved: dict[str, Any] = json.loads(content)
        self.host_id, self.host_boot_id = saved["host_id"], saved["host_boot_id"]
        self.run_id, self.ordinal = saved["run_id"], saved["ordinal"]
        self.tick_ns, self.newest_seq = saved["tick_ns"], saved["newest_seq"]
        self.slots = {slot: VmKey(vm_id, epoch) for slot, vm_id, epoch in saved["slots"]}
        self._seen_slots = None
        rows = {key: record.row for key, record in self.vms.items()}
        self.vms = {}
        for vm_id, epoch, record in saved["vms"]:
            key = VmKey(vm_id, epoch)
            row = rows.pop(key) if key in rows else self.rings.allocate()
            self.vms[key] = _record_from_json(record, row)
        for row in rows.values():
            self.rings.release(row)
        self.losses = [SeqGap(**gap) for gap in saved["losses"]]
        self.known_events = OrderedDict.fromkeys(saved["known_events"])
        events = [
            samples_pb.LifecycleEvent.from_binary(base64.b64decode(one)) for one in saved["events"]
        ]
        self.events = {event_name(event): event for event in events}


def _record_to_json(record: VmRecord) -> dict[str, Any]:
    # By hand: `asdict` copies every number, and all VMs stand in every segment's beginning.
    return {
        "provisions": [(seq, _provision_to_json(had)) for seq, had in record.provisions],
        "attached_seq": record.attached_seq,
        "last_seq": record.last_seq,
        "covered_seq": record.covered_seq,
        "run_id": record.run_id,
        "losses": [asdict(gap) for gap in record.losses],
        "ended": record.ended,
        "paused": record.paused,
    }


def _provision_to_json(had: Provision) -> dict[str, Any]:
    return {
        "tenant_id": had.tenant_id,
        "deployment_id": had.deployment_id,
        "vcpus": had.vcpus,
        "memory_bytes": had.memory_bytes,
        "disk_bytes": had.disk_bytes,
    }


def _record_from_json(content: dict[str, Any], row: int) -> VmRecord:
    return VmRecord(
        row=row,
        provisions=[(seq, Provision(**provision)) for seq, provision in content["provisions"]],
        attached_seq=content["attached_seq"],
        last_seq=content["last_seq"],
        covered_seq=content["covered_seq"],
        run_id=content["run_id"],
        losses=[SeqGap(**gap) for gap in content["losses"]],
        ended=content["ended"],
        paused=content["paused"],
    )
