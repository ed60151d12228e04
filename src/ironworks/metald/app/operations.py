"""One transition at a time per VM, and each belongs to metald, not to the call that asks for it."""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from ironworks.model.errors import Aborted
from ironworks.runtime.tasks import Tasks

_T = TypeVar("_T")
OURS = frozenset({"end", "health", "reconcile"})
"""Transitions that nobody has called for."""
PATIENCE_SECONDS = 10.0


@dataclass(slots=True, kw_only=True)
class Operation:
    """A transition that is under way."""

    name: str
    interrupt: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when something more urgent waits: a boot gives way to a shutdown."""
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[_T]):
    """What a task came to: a failure that is expected here is a value, and no fault of the task."""

    value: _T | None = None
    error: Exception | None = None

    def unwrap(self) -> _T:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return cast("_T", self.value)


async def outcome_of(work: Coroutine[Any, Any, _T]) -> Outcome[_T]:
    """Do `work`; what it raises becomes its outcome."""
    try:
        return Outcome(value=await work)
    except Exception as error:  # noqa: BLE001 - handed on, by value
        return Outcome(error=error)


class Operations:
    """The transitions that are under way, by VM."""

    def __init__(self, tasks: Tasks) -> None:
        """Run them as `tasks`: a caller who hangs up does not cut a transition off."""
        self._tasks = tasks
        self._running: dict[str, Operation] = {}

    def busy(self, vm_id: str) -> bool:
        """Whether a transition of this VM is under way."""
        return vm_id in self._running

    def begin(self, vm_id: str, name: str) -> Operation:
        """Claim the VM for a transition.

        Raises:
            Aborted: another one is under way.
        """
        other = self._running.get(vm_id)
        if other is not None:
            raise Aborted(
                f"VM {vm_id} is in the midst of another call ({other.name}).",
                hint="Repeat this one shortly.",
            )
        operation = Operation(name=name)
        self._running[vm_id] = operation
        return operation

    async def begin_after_ours(self, vm_id: str, name: str) -> Operation:
        """Claim the VM for a caller's transition.

        What metald itself is just doing to it is waited for, and so is the same transition for an
        earlier call: the repeated call then finds it done.

        Raises:
            Aborted: another caller's transition is under way, or ours takes too long.
        """
        while (other := self._running.get(vm_id)) is not None and other.name == name:
            await other.done.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (other := self._running.get(vm_id)) is not None and other.name in OURS:
                    await other.done.wait()
        return self.begin(vm_id, name)

    def end(self, vm_id: str) -> None:
        """Give the VM back."""
        operation = self._running.pop(vm_id, None)
        if operation is not None:
            operation.done.set()

    async def run(self, vm_id: str, work: Coroutine[Any, Any, _T], name: str) -> _T:
        """Run the body of a transition that `begin` has claimed, to its end even if callers go."""
        task = self._tasks.start(self._body(vm_id, work), name=f"{name} {vm_id}")
        return (await asyncio.shield(task)).unwrap()

    def run_alone(self, vm_id: str, work: Coroutine[Any, Any, None], name: str) -> None:
        """As `run`, for work that nobody waits for and that tells of its own failures."""
        self._tasks.start(self._body(vm_id, work), name=f"{name} {vm_id}")

    def count(self, name: str) -> int:
        """How many transitions of this name are under way."""
        return sum(operation.name == name for operation in self._running.values())

    async def _body(self, vm_id: str, work: Coroutine[Any, Any, _T]) -> Outcome[_T]:
        try:
            return await outcome_of(work)
        finally:
            self.end(vm_id)

    async def interrupt(self, vm_id: str, names: frozenset[str], timeout_seconds: float) -> None:
        """Ask a running transition of one of these names to give way, and wait until it has.

        Raises:
            Aborted: it did not in time.
        """
        operation = self._running.get(vm_id)
        if operation is None or operation.name not in names:
            return
        operation.interrupt.set()
        try:
            async with asyncio.timeout(timeout_seconds):
                await operation.done.wait()
        except TimeoutError:
            raise Aborted(
                f"VM {vm_id} is in the midst of another call ({operation.name}).",
                hint="Repeat this one shortly.",
            ) from None

    async def settled(self, vm_id: str) -> None:
        """Wait until no transition of this VM is under way."""
        while (operation := self._running.get(vm_id)) is not None:
            await operation.done.wait()
