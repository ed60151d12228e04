"""WatchVms: what is, then what changes."""

from collections.abc import AsyncGenerator

from ironworks.metald import store
from ironworks.metald.app.changes import VmChange
from ironworks.metald.app.context import Context
from ironworks.metald.types import VmFilter, VmState
from ironworks.model.errors import InvalidRequest
from ironworks.model.pages import MAX_PAGE_SIZE, PageSpec


async def watch_vms(
    context: Context, wanted: VmFilter, after_sequence: int
) -> AsyncGenerator[VmChange]:
    """The changes of the VMs that are wanted; without an end.

    Raises:
        FailedPrecondition: changes after `after_sequence` are forgotten, or the caller is too slow.
        ResourceExhausted: too many watch already.
    """
    if after_sequence < 0:
        raise InvalidRequest("after_sequence must be at least 0.")
    changes = context.changes
    changes.enter(wanted.tenant_id)
    try:
        at = after_sequence
        if at == 0:
            # From before the list: what changes while it is read is told after it.
            at = changes.now
            async for change in _present(context, wanted, at):
                yield change
        while True:
            for event in changes.since(at):
                if concerns(event, wanted):
                    yield event
                at = event.sequence
            if changes.last <= at:
                await changes.wait()
    finally:
        changes.leave(wanted.tenant_id)


async def _present(context: Context, wanted: VmFilter, sequence: int) -> AsyncGenerator[VmChange]:
    """One event for each VM that there is; only the last has a sequence to go on from."""
    page = PageSpec(size=MAX_PAGE_SIZE)
    while True:
        found = await context.db.read(
            lambda connection, page=page: store.list_vms(connection, wanted, page)
        )
        for key in found.keys:
            vm = found.vms[key]
            last = found.after is None and key is found.keys[-1]
            yield VmChange(
                sequence=sequence if last else 0,
                at_ns=vm.state_changed_at_ns,
                vm=vm,
                before=None,
            )
        if found.after is None:
            return
        page = PageSpec(size=MAX_PAGE_SIZE, after=found.after)


def concerns(change: VmChange, wanted: VmFilter) -> bool:
    """Whether a change is of a VM that is wanted, or takes one out of the states that are."""
    vm = change.vm
    if (
        (wanted.name and vm.spec.name != wanted.name)
        or (wanted.deployment_id and vm.spec.deployment_id != wanted.deployment_id)
        or (wanted.tenant_id and vm.tenant_id != wanted.tenant_id)
        or any(vm.spec.labels.get(key) != value for key, value in wanted.labels)
    ):
        return False
    states = (vm.state,) if change.before is None else (vm.state, change.before)
    return any(_fits(state, wanted.states) for state in states)


def _fits(state: VmState, states: tuple[VmState, ...]) -> bool:
    return state in states if states else state is not VmState.DELETED
