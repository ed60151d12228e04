"""Every SQL statement of metald: functions that take a `Connection`, one transaction around each.

A change of a VM names the generation that it was decided on; if the row has moved on, it is
refused with `Aborted` and nothing is written.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.sql import tuple_
from sqlalchemy.sql.expression import BindParameter

from ironworks.metald.decide import COUNTED
from ironworks.metald.drivers.driver import Evidence, ExitReport
from ironworks.metald.tables import HISTORY, HOST, IDEMPOTENCY, LABELS, LEASES, TIMINGS, VMS
from ironworks.metald.types import (
    MAX_HISTORY,
    Drain,
    Host,
    HostState,
    ImageDefaults,
    Lease,
    NetworkSpec,
    Resources,
    StepTiming,
    Transition,
    Vm,
    VmFilter,
    VmKey,
    VmmSize,
    VmPage,
    VmSpec,
    VmState,
)
from ironworks.model.errors import Aborted, NotFound
from ironworks.model.pages import PageSpec
from ironworks.storage import idempotency

MAX_READ_SPECS = 4096
"""That are remembered, at some kilobytes each."""
_SPEC = TypeAdapter(VmSpec)
_EVIDENCE = TypeAdapter(Evidence)
_EXIT = TypeAdapter(ExitReport)
_TEXTS = TypeAdapter(tuple[str, ...])
_TIMES = TypeAdapter(tuple[int, ...])
_VMM = TypeAdapter(VmmSize)
_DRAIN = TypeAdapter(Drain)
_IMAGE = TypeAdapter(ImageDefaults)
# Made once: to make a statement anew takes SQLAlchemy twice as long as to run it.
_ID: BindParameter[str] = bindparam("vm_id")
_VM_BY_ID = select(VMS).where(VMS.c.id == _ID)
_HISTORY_OF = select(HISTORY).where(HISTORY.c.vm_id == _ID).order_by(HISTORY.c.generation)
_TIMINGS_OF = select(TIMINGS).where(TIMINGS.c.vm_id == _ID).order_by(TIMINGS.c.started_at_ns)
_TABLE_ROW = Row[tuple[object, ...]]


def spec_bytes(spec: VmSpec) -> bytes:
    """The spec as the store keeps it: equal specs, equal bytes."""
    return _SPEC.dump_json(replace(spec, labels=dict(sorted(spec.labels.items()))))


# --- host ---------------------------------------------------------------------------------------


def read_host(connection: Connection) -> Host | None:
    """This machine; None before the first start."""
    row = connection.execute(select(HOST)).one_or_none()
    if row is None:
        return None
    return Host(
        host_id=row.id,
        tag=row.tag,
        state=HostState(row.state),
        reason=row.reason,
        generation=row.generation,
        default_kernel_asset_id=row.default_kernel_asset_id,
        default_initrd_asset_id=row.default_initrd_asset_id,
        drain=None if row.drain is None else _DRAIN.validate_json(row.drain),
    )


def write_host(connection: Connection, host: Host) -> None:
    """Make or replace the row of this machine."""
    connection.execute(delete(HOST))
    connection.execute(
        insert(HOST).values(
            id=host.host_id,
            tag=host.tag,
            state=host.state.value,
            reason=host.reason,
            generation=host.generation,
            default_kernel_asset_id=host.default_kernel_asset_id,
            default_initrd_asset_id=host.default_initrd_asset_id,
            drain=None if host.drain is None else _DRAIN.dump_json(host.drain).decode(),
        )
    )


# --- VMs ----------------------------------------------------------------------------------------


@lru_cache(maxsize=MAX_READ_SPECS)
def _read_spec(text: str) -> VmSpec:
    """A spec as `spec_bytes` wrote it: few ever change, and reading one takes longer than SQL."""
    return _SPEC.validate_json(text)


def _vm(row: _TABLE_ROW) -> Vm:
    """A VM out of a whole row of its table."""
    return Vm(
        vm_id=row.id,
        tenant_id=row.tenant_id,
        spec=_read_spec(row.spec),
        state=VmState(row.state),
        reason=row.reason,
        generation=row.generation,
        created_at_ns=row.created_at_ns,
        state_changed_at_ns=row.state_changed_at_ns,
        slot=row.slot,
        boot_epoch=row.boot_epoch,
        ready=row.ready,
        driver=row.driver,
        accel=row.accel,
        committed=Resources(
            vcpus=row.vcpus,
            memory_bytes=row.committed_memory_bytes,
            disk_bytes=row.committed_disk_bytes,
            vms=1,
        ),
        vmm=None if row.vmm is None else _VMM.validate_json(row.vmm),
        restarts=row.restarts,
        recent_restarts=_TIMES.validate_json(row.recent_restarts),
        restart_at_ns=row.restart_at_ns,
        evidence=None if row.evidence is None else _EVIDENCE.validate_json(row.evidence),
        exit=None if row.exit is None else _EXIT.validate_json(row.exit),
        exit_at_ns=row.exit_at_ns,
        drift=_TEXTS.validate_json(row.drift),
    )


def _changing(vm: Vm) -> dict[str, object]:
    return {
        "state": vm.state.value,
        "reason": vm.reason,
        "generation": vm.generation,
        "state_changed_at_ns": vm.state_changed_at_ns,
        "slot": vm.slot,
        "boot_epoch": vm.boot_epoch,
        "ready": vm.ready,
        "driver": vm.driver,
        "accel": vm.accel,
        "evidence": None if vm.evidence is None else _EVIDENCE.dump_json(vm.evidence).decode(),
        "exit": None if vm.exit is None else _EXIT.dump_json(vm.exit).decode(),
        "exit_at_ns": vm.exit_at_ns,
        "drift": _TEXTS.dump_json(vm.drift).decode(),
        "spec": spec_bytes(vm.spec).decode(),
        "vcpus": vm.committed.vcpus,
        "committed_memory_bytes": vm.committed.memory_bytes,
        "committed_disk_bytes": vm.committed.disk_bytes,
        "vmm": None if vm.vmm is None else _VMM.dump_json(vm.vmm).decode(),
        "restarts": vm.restarts,
        "recent_restarts": _TIMES.dump_json(vm.recent_restarts).decode(),
        "restart_at_ns": vm.restart_at_ns,
    }


def insert_vm(connection: Connection, vm: Vm, reason: str) -> None:
    """Add a VM with the first line of its history."""
    connection.execute(
        insert(VMS).values(
            id=vm.vm_id,
            tenant_id=vm.tenant_id,
            name=vm.spec.name,
            deployment_id=vm.spec.deployment_id,
            created_at_ns=vm.created_at_ns,
            **_changing(vm),
        )
    )
    if vm.spec.labels:
        rows = [{"vm_id": vm.vm_id, "key": k, "value": v} for k, v in vm.spec.labels.items()]
        connection.execute(insert(LABELS), rows)
    first = Transition(
        before=None,
        after=vm.state,
        at_ns=vm.created_at_ns,
        reason=reason,
        generation=vm.generation,
    )
    _add_line(connection, vm.vm_id, first)


def update_vm(
    connection: Connection, vm: Vm, *, decided_on: int, line: Transition | None = None
) -> None:
    """Write a VM that was decided on generation `decided_on`, and its history's next line.

    Raises:
        Aborted: the VM has another generation by now.
    """
    result = connection.execute(
        update(VMS)
        .where(VMS.c.id == vm.vm_id, VMS.c.generation == decided_on)
        .values(**_changing(vm))
    )
    if result.rowcount != 1:
        raise Aborted(
            f"VM {vm.vm_id} was changed by another call.", hint="Read it again, then repeat."
        )
    if line is not None:
        _add_line(connection, vm.vm_id, line)


def _add_line(connection: Connection, vm_id: str, line: Transition) -> None:
    connection.execute(
        insert(HISTORY).values(
            vm_id=vm_id,
            generation=line.generation,
            before="" if line.before is None else line.before.value,
            after=line.after.value,
            at_ns=line.at_ns,
            reason=line.reason,
        )
    )
    newest = (
        select(HISTORY.c.generation)
        .where(HISTORY.c.vm_id == vm_id)
        .order_by(HISTORY.c.generation.desc())
        .limit(MAX_HISTORY)
        .subquery()
    )
    connection.execute(
        delete(HISTORY).where(
            HISTORY.c.vm_id == vm_id, HISTORY.c.generation.not_in(select(newest.c.generation))
        )
    )


def read_vm(connection: Connection, vm_id: str, tenant_id: str | None = None) -> Vm:
    """One VM; of `tenant_id` only, if that is given.

    Raises:
        NotFound: no such VM, or it is another tenant's.
    """
    vm = find_vm(connection, vm_id)
    if vm is None or (tenant_id is not None and vm.tenant_id != tenant_id):
        raise NotFound(f"VM {vm_id} is not known here.", hint="ListVms shows those that are.")
    return vm


def find_vm(connection: Connection, vm_id: str) -> Vm | None:
    """One VM of any tenant; None if there is none."""
    row = connection.execute(_VM_BY_ID, {"vm_id": vm_id}).one_or_none()
    return None if row is None else _vm(row)


def _filtered(wanted: VmFilter) -> Select[tuple[object, ...]]:
    statement = select(VMS)
    if wanted.states:
        statement = statement.where(VMS.c.state.in_([state.value for state in wanted.states]))
    else:
        statement = statement.where(VMS.c.state != VmState.DELETED.value)
    if wanted.name:
        statement = statement.where(VMS.c.name == wanted.name)
    if wanted.deployment_id:
        statement = statement.where(VMS.c.deployment_id == wanted.deployment_id)
    if wanted.tenant_id:
        statement = statement.where(VMS.c.tenant_id == wanted.tenant_id)
    for key, value in wanted.labels:
        carriers = select(LABELS.c.vm_id).where(LABELS.c.key == key, LABELS.c.value == value)
        statement = statement.where(VMS.c.id.in_(carriers))
    return statement


@lru_cache(maxsize=64)
def _first_page(wanted: VmFilter, size: int) -> Select[str, int, int]:
    """The keys of a page and of one more VM."""
    return (
        _filtered(wanted)
        .with_only_columns(VMS.c.id, VMS.c.created_at_ns, VMS.c.generation)
        .order_by(VMS.c.created_at_ns, VMS.c.id)
        .limit(size + 1)
    )


def list_vms(
    connection: Connection, wanted: VmFilter, page: PageSpec, known: Container[VmKey] = ()
) -> VmPage:
    """A page of VMs, oldest first; whole rows are read of those only that are not `known`."""
    statement = _first_page(wanted, page.size)
    if page.after:
        at_ns, vm_id = page.after
        statement = statement.where(tuple_(VMS.c.created_at_ns, VMS.c.id) > tuple_(at_ns, vm_id))
    keys: list[VmKey] = [(row[0], row[1], row[2]) for row in connection.execute(statement)]
    has_more = len(keys) > page.size
    keys = keys[: page.size]
    news = {key[0]: key for key in keys if key not in known}
    rows = connection.execute(select(VMS).where(VMS.c.id.in_(news))) if news else ()
    return VmPage(
        keys=keys,
        vms={news[row.id]: _vm(row) for row in rows},
        after=(keys[-1][1], keys[-1][0]) if has_more else None,
    )


def vms_in(connection: Connection, states: Iterable[VmState]) -> Sequence[Vm]:
    """All VMs in one of these states, oldest first."""
    wanted = VmFilter(states=tuple(states))
    statement = _filtered(wanted).order_by(VMS.c.created_at_ns, VMS.c.id)
    return [_vm(row) for row in connection.execute(statement)]


def ended_but_not_clean(connection: Connection) -> Sequence[Vm]:
    """VMs without a VMM that still have a slot, evidence or a lease: a clean-up was cut off."""
    ended = [VmState.STOPPED.value, VmState.FAILED.value, VmState.DELETED.value]
    leased = select(LEASES.c.vm_id)
    statement = select(VMS).where(
        VMS.c.state.in_(ended),
        VMS.c.slot.is_not(None) | VMS.c.evidence.is_not(None) | VMS.c.id.in_(leased),
    )
    return [_vm(row) for row in connection.execute(statement)]


def committed(connection: Connection, tenant_id: str | None = None) -> Resources:
    """What all VMs, or those of a tenant, together take of the host."""
    statement = select(
        func.coalesce(func.sum(VMS.c.vcpus), 0),
        func.coalesce(func.sum(VMS.c.committed_memory_bytes), 0),
        func.coalesce(func.sum(VMS.c.committed_disk_bytes), 0),
        func.count(),
    ).where(VMS.c.state.in_([state.value for state in COUNTED]))
    if tenant_id is not None:
        statement = statement.where(VMS.c.tenant_id == tenant_id)
    row = connection.execute(statement).one()
    return Resources(
        vcpus=int(row[0]), memory_bytes=int(row[1]), disk_bytes=int(row[2]), vms=int(row[3])
    )


def restarts_due(connection: Connection, now_ns: int, limit: int) -> Sequence[Vm]:
    """RUNNING VMs that are to get a fresh VMM by now, the longest waiting first."""
    statement = (
        select(VMS)
        .where(VMS.c.restart_at_ns > 0, VMS.c.restart_at_ns <= now_ns)
        .where(VMS.c.state == VmState.RUNNING.value)
        .order_by(VMS.c.restart_at_ns)
        .limit(limit)
    )
    return [_vm(row) for row in connection.execute(statement)]


def taken_slots(connection: Connection) -> frozenset[int]:
    """Network slots that VMs hold."""
    rows = connection.execute(select(VMS.c.slot).where(VMS.c.slot.is_not(None)))
    return frozenset(int(row.slot) for row in rows)


def networks(connection: Connection, *, except_vm_id: str = "") -> Sequence[NetworkSpec]:
    """The networks of all VMs that have published ports and a slot, but for one VM."""
    rows = connection.execute(
        select(VMS.c.spec).where(
            VMS.c.slot.is_not(None),
            VMS.c.id != except_vm_id,
            VMS.c.spec.like('%"host_port":%'),
        )
    )
    return [_read_spec(row.spec).network for row in rows]


def history(connection: Connection, vm_id: str) -> Sequence[Transition]:
    """The VM's transitions, oldest first."""
    rows = connection.execute(_HISTORY_OF, {"vm_id": vm_id})
    return [
        Transition(
            before=VmState(row.before) if row.before else None,
            after=VmState(row.after),
            at_ns=row.at_ns,
            reason=row.reason,
            generation=row.generation,
        )
        for row in rows
    ]


def vms_with_parts(connection: Connection) -> frozenset[str]:
    """VMs that may have a jail, a cgroup or a kept console: all but the deleted ones."""
    rows = connection.execute(select(VMS.c.id).where(VMS.c.state != VmState.DELETED.value))
    return frozenset(str(row.id) for row in rows)


def forget_deleted(connection: Connection, before_ns: int, now_ns: int, limit: int) -> int:
    """Drop tombstones older than `before_ns`, and old idempotency keys; answers how many VMs."""
    old = (
        select(VMS.c.id)
        .where(
            VMS.c.state == VmState.DELETED.value,
            VMS.c.state_changed_at_ns < before_ns,
            VMS.c.slot.is_(None),
            VMS.c.id.not_in(select(LEASES.c.vm_id)),
        )
        .order_by(VMS.c.state_changed_at_ns)
        .limit(limit)
    )
    dropped = connection.execute(delete(VMS).where(VMS.c.id.in_(old))).rowcount
    idempotency.forget(connection, IDEMPOTENCY, now_ns)
    return dropped


# --- timings ------------------------------------------------------------------------------------


def write_timings(connection: Connection, vm_id: str, timings: Sequence[StepTiming]) -> None:
    """Keep how long steps took; the last time counts."""
    last = {timing.step: timing for timing in timings}
    connection.execute(delete(TIMINGS).where(TIMINGS.c.vm_id == vm_id, TIMINGS.c.step.in_(last)))
    if timings:
        rows = [
            {
                "vm_id": vm_id,
                "step": timing.step,
                "started_at_ns": timing.started_at_ns,
                "duration_ns": timing.duration_ns,
            }
            for timing in last.values()
        ]
        connection.execute(insert(TIMINGS), rows)


def timings(connection: Connection, vm_id: str) -> Sequence[StepTiming]:
    """How long the steps of a VM took, in order of time."""
    rows = connection.execute(_TIMINGS_OF, {"vm_id": vm_id})
    return [
        StepTiming(step=row.step, started_at_ns=row.started_at_ns, duration_ns=row.duration_ns)
        for row in rows
    ]


# --- leases -------------------------------------------------------------------------------------


def write_lease(connection: Connection, vm_id: str, lease: Lease) -> None:
    """Keep the lease that is held, or about to be acquired, for a VM."""
    drop_lease(connection, vm_id)
    connection.execute(
        insert(LEASES).values(
            vm_id=vm_id,
            lease_id=lease.lease_id,
            rootfs_asset_id=lease.rootfs_asset_id,
            kernel_asset_id=lease.kernel_asset_id,
            initrd_asset_id=lease.initrd_asset_id,
            rootfs_format=lease.rootfs_format,
            image=_IMAGE.dump_json(lease.image).decode(),
        )
    )


def change_lease(connection: Connection, vm_id: str, lease: Lease) -> None:
    """Keep another lease, unless that of the VM has been given back meanwhile."""
    changed = update(LEASES).where(LEASES.c.vm_id == vm_id).values(lease_id=lease.lease_id)
    connection.execute(changed)


def unleased(connection: Connection) -> frozenset[str]:
    """VMs whose lease was lost and could not be taken anew."""
    rows = connection.execute(select(LEASES.c.vm_id).where(LEASES.c.lease_id == ""))
    return frozenset(str(row.vm_id) for row in rows)


def drop_lease(connection: Connection, vm_id: str) -> None:
    """Forget a lease that has been released."""
    connection.execute(delete(LEASES).where(LEASES.c.vm_id == vm_id))


def _lease(row: _TABLE_ROW) -> Lease:
    return Lease(
        lease_id=row.lease_id,
        rootfs_asset_id=row.rootfs_asset_id,
        kernel_asset_id=row.kernel_asset_id,
        initrd_asset_id=row.initrd_asset_id,
        rootfs_format=row.rootfs_format,
        image=_IMAGE.validate_json(row.image),
    )


def find_lease(connection: Connection, vm_id: str) -> Lease | None:
    """The lease of a VM; None if it has none."""
    row = connection.execute(select(LEASES).where(LEASES.c.vm_id == vm_id)).one_or_none()
    return None if row is None else _lease(row)


def leases(connection: Connection) -> Sequence[tuple[Vm, Lease]]:
    """The lease of every VM that has one, or should, with its VM."""
    rows = connection.execute(select(LEASES)).all()
    vms = connection.execute(select(VMS).where(VMS.c.id.in_(select(LEASES.c.vm_id))))
    by_id = {row.id: _vm(row) for row in vms}
    return [(by_id[row.vm_id], _lease(row)) for row in rows]
