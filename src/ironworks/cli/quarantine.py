"""`iron quarantine`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cyclopts import App, Parameter

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import state_name, when
from ironworks.cli.tenant import tenant_id_of
from ironworks.gen.ironworks.aggregatord.v1 import batch_pb
from ironworks.model.errors import InvalidRequest

app = App(name="quarantine", help="Usage that cannot be true: list it, release or reject it.")

StateName = Literal["open", "released", "rejected", "all"]


@app.command(name="list")
async def list_(
    *,
    tenant: str = "",
    vm: str = "",
    state: StateName = "open",
    limit: int = 100,
    options: Options = DEFAULTS,
) -> None:
    """List windows that failed validation, newest first. For operators.

    Args:
        tenant: Only of this tenant, by id or name.
        vm: Only of this VM.
        state: Only those that nobody has decided about (default), that were released or rejected.
        limit: How many at most; default: 100.
    """
    wanted = "UNSPECIFIED" if state == "all" else state.upper()
    async with options.client() as client:
        page = await client.usage.quarantined(
            tenant_id=await tenant_id_of(client, tenant),
            vm_id=vm,
            state=batch_pb.QuarantineState[wanted],
            limit=limit,
        )
    options.output().listing(
        "windows",
        page,
        ("WINDOW", "CONTENT", "VM", "TENANT", "RECEIVED", "STATE", "REASON", "WHAT IS WRONG"),
        lambda one: (
            one.window_id,
            one.content_sha256.hex()[:12],
            one.vm_id,
            one.tenant_id,
            when(one.received_at_ns),
            state_name(one.state),
            state_name(one.reason),
            one.detail,
        ),
    )


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a decision about a window says.

    Attributes:
        note: Why; it is kept for ever.
        content: Which one, where several windows have the id: the content's SHA-256 or its
            beginning, as `list` shows it.
    """

    note: str
    content: str = ""


@app.command
async def release(window: str, /, *, decision: Decision, options: Options = DEFAULTS) -> None:
    """Store and bill a window after all. For operators; a decision is final.

    Args:
        window: Its id.
    """
    await _resolve(window, batch_pb.QuarantineState.RELEASED, decision, options)


@app.command
async def reject(window: str, /, *, decision: Decision, options: Options = DEFAULTS) -> None:
    """Never bill a window; it is kept. For operators; a decision is final.

    Args:
        window: Its id.
    """
    await _resolve(window, batch_pb.QuarantineState.REJECTED, decision, options)


async def _resolve(
    window: str, state: batch_pb.QuarantineState, decision: Decision, options: Options
) -> None:
    content = decision.content.lower()
    async with options.client() as client:
        digest = b""
        if content:
            held = {
                one.content_sha256
                for one in await client.usage.quarantined()
                if one.window_id == window and one.content_sha256.hex().startswith(content)
            }
            if len(held) != 1:
                raise InvalidRequest(
                    f"{len(held)} of the newest windows in quarantine have this id and content.",
                    hint="`iron quarantine list --state all` shows them.",
                )
            digest = held.pop()
        done = await client.usage.resolve(window, state, note=decision.note, content_sha256=digest)
    options.output().fields(
        done,
        {
            "Window": done.window_id,
            "VM": done.vm_id,
            "State": state_name(done.state),
            "Note": done.note,
            "Decided by": done.resolved_by,
            "Decided": when(done.resolved_at_ns),
        },
    )
