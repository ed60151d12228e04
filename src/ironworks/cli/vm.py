"""`iron vm`."""

from __future__ import annotations

import sys

from cyclopts import App

from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import Output, duration, printable, state_name, when
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.model.units import format_bytes

app = App(name="vm", help="Show and steer VMs, read their consoles.")


def _size(vm: vm_pb.Vm) -> str:
    spec = vm.spec or vm_pb.VmSpec()
    return f"{spec.vcpus} vCPU, {format_bytes(spec.memory_bytes)}"


@app.command
async def get(vm: str, /, *, options: Options = DEFAULTS) -> None:
    """Show a VM, how it ended, its history and how long each step of its boot took.

    Args:
        vm: Id, `vm_…`.
    """
    async with options.client() as client:
        found = await client.vms.get(vm)
    out = options.output()
    network = found.network or vm_pb.VmNetwork()
    spec = found.spec or vm_pb.VmSpec()
    out.fields(
        found,
        {
            "VM": found.id,
            "Name": spec.name,
            "State": state_name(found.state) + (f": {found.reason}" if found.reason else ""),
            "Ready": "yes" if found.ready else "no",
            "Size": _size(found),
            "Runs on": f"{found.driver} ({found.accel}), host {found.host_id}",
            "Address": network.fabric_address or "-",
            "Deployment": spec.deployment_id or "-",
            "Boots": f"{found.boot_epoch}, restarted {found.restarts} times",
            "Created": when(found.created_at_ns),
        },
    )
    if options.json:
        return
    for sentence in found.drift:
        out.say(f"Drift: {sentence}")
    if found.exit is not None:
        _show_exit(out, found.exit)
    if found.timings:
        out.table(
            ("STEP", "TOOK"), [(step.step, duration(step.duration_ns)) for step in found.timings]
        )
    if found.history:
        out.table(
            ("AT", "STATE", "REASON"),
            [(when(one.at_ns), state_name(one.to), one.reason) for one in found.history],
        )


def _show_exit(out: Output, ended: vm_pb.VmExit) -> None:
    """How the last run ended, and what the console said last."""
    status = ended.workload_status if ended.has_field("workload_status") else "not known"
    vmm = ended.vmm_status if ended.has_field("vmm_status") else "not known"
    out.plain(f"Ended at {when(ended.at_ns)}: {ended.sentence}")
    out.plain(f"Exit status {status}, of its VMM {vmm}. Last lines of its console:")
    for line in ended.console_tail:
        out.plain(f"  {line}")


@app.command
async def network(vm: str, /, *, options: Options = DEFAULTS) -> None:
    """Show a VM's addresses, its rules, and what its firewall has refused.

    Args:
        vm: Id, `vm_…`.
    """
    async with options.client() as client:
        found = await client.vms.get(vm)
        stats = await client.vms.network_stats(vm)
    out = options.output()
    place = found.network or vm_pb.VmNetwork()
    spec = (found.spec or vm_pb.VmSpec()).network or vm_pb.VmNetworkSpec()
    out.fields(
        stats,
        {
            "VM": found.id,
            "Address": place.fabric_address or "-",
            "IPv6": place.fabric_address_v6 or "-",
            "May open": ", ".join(_rule(rule) for rule in spec.egress) or "nothing",
            "Name servers": ", ".join(spec.nameservers) or "-",
            "Published": ", ".join(_port(port) for port in place.published_ports) or "-",
            "Received": format_bytes(stats.in_bytes),
            "Sent": format_bytes(stats.out_bytes),
        },
    )
    if not options.json:
        out.table(
            ("REFUSED", "PACKETS", "BYTES"),
            [(line.rule, str(line.packets), str(line.bytes)) for line in stats.denied],
        )


def _protocol(number: vm_pb.TransportProtocol) -> str:
    return "" if number == vm_pb.TransportProtocol.UNSPECIFIED else f"/{number.name.lower()}"


def _rule(rule: vm_pb.EgressRule) -> str:
    ports = "" if not rule.first_port else f" port {rule.first_port}"
    if rule.last_port > rule.first_port:
        ports += f"-{rule.last_port}"
    return f"{rule.cidr}{ports}{_protocol(rule.protocol)}"


def _port(port: vm_pb.PublishedPort) -> str:
    return f"{port.host_port} to {port.guest_port}{_protocol(port.protocol)}"


@app.command(name="list")
async def list_(*, deployment: str = "", limit: int = 100, options: Options = DEFAULTS) -> None:
    """List VMs, oldest first.

    Args:
        deployment: Only VMs of this deployment, `dep_…`.
        limit: How many at most; default: 100.
    """
    async with options.client() as client:
        page = await client.vms.list(deployment_id=deployment, limit=limit)
    options.output().listing(
        "vms",
        page,
        ("VM", "STATE", "SIZE", "DRIVER", "ADDRESS", "CREATED"),
        lambda one: (
            one.id,
            state_name(one.state),
            _size(one),
            f"{one.driver} ({one.accel})",
            (one.network or vm_pb.VmNetwork()).fabric_address or "-",
            when(one.created_at_ns),
        ),
    )


@app.command
async def console(
    vm: str,
    /,
    *,
    lines: int = 100,
    follow: bool = False,
    raw: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Print the log of a VM's serial console.

    Args:
        vm: Id, `vm_…`.
        lines: Begin with this many of the last lines; default: 100.
        follow: Stay and print what comes, until the VM ends.
        raw: Print control characters as the guest wrote them. A guest can do harm to a terminal
            with them: without this, a terminal is not shown any.
    """
    keep = raw or not sys.stdout.isatty()
    async with options.client() as client:
        async for piece in client.vms.console(vm, tail_lines=lines, follow=follow):
            if not keep:
                text = piece.decode(errors="replace").replace("\r\n", "\n")
                sys.stdout.write(printable(text))
                sys.stdout.flush()
                continue
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


def _changed(vm: vm_pb.Vm, options: Options) -> None:
    """What became of a VM, in one line or in JSON."""
    why = f": {vm.reason}" if vm.reason else ""
    options.output().fields(vm, {"VM": vm.id, "State": state_name(vm.state) + why})


@app.command
async def boot(
    vm: str, /, *, ready_within: float = 0, detach: bool = False, options: Options = DEFAULTS
) -> None:
    """Boot a VM that was created and has not run; ends when it is ready.

    Args:
        vm: Id, `vm_…`.
        ready_within: Seconds after which the boot has failed, 1 to 600; default: the host's, 60, or
            120 where guests are emulated.
        detach: Do not wait until it is ready.
    """
    async with options.client() as client:
        _changed(await client.vms.boot(vm, timeout_seconds=ready_within, detach=detach), options)


@app.command
async def pause(vm: str, /, *, options: Options = DEFAULTS) -> None:
    """Stop the virtual CPUs of a VM; its memory is kept.

    Args:
        vm: Id, `vm_…`.
    """
    async with options.client() as client:
        _changed(await client.vms.pause(vm), options)


@app.command
async def resume(vm: str, /, *, options: Options = DEFAULTS) -> None:
    """Let a paused VM run on.

    Args:
        vm: Id, `vm_…`.
    """
    async with options.client() as client:
        _changed(await client.vms.resume(vm), options)


@app.command
async def reboot(vm: str, /, *, grace: float = 0, options: Options = DEFAULTS) -> None:
    """End a VM's guest and boot it again at the same address; ends when it is ready.

    Args:
        vm: Id, `vm_…`.
        grace: Seconds after which the old guest is ended by force; default: 30.
    """
    async with options.client() as client:
        _changed(await client.vms.reboot(vm, timeout_seconds=grace), options)


@app.command
async def stop(
    vm: str,
    /,
    *,
    grace: float = 0,
    force: bool = False,
    reason: str = "",
    options: Options = DEFAULTS,
) -> None:
    """Ask a VM's guest to end, wait, then end it by force.

    Args:
        vm: Id, `vm_…`.
        grace: Seconds after which it is ended by force; default: 30.
        force: End it at once, without asking the guest.
        reason: Kept in the VM's history.
    """
    async with options.client() as client:
        ended = await client.vms.shutdown(vm, timeout_seconds=grace, force=force, reason=reason)
    _changed(ended, options)


@app.command
async def delete(vm: str, /, *, force: bool = False, options: Options = DEFAULTS) -> None:
    """Remove a VM that is stopped or failed, and everything of it.

    Args:
        vm: Id, `vm_…`.
        force: Also one that runs: it is ended by force first.
    """
    async with options.client() as client:
        _changed(await client.vms.delete(vm, force=force), options)


@app.command
async def watch(*, deployment: str = "", options: Options = DEFAULTS) -> None:
    """Print each VM, then each change of one, until interrupted.

    Args:
        deployment: Only VMs of this deployment, `dep_…`.
    """
    out = options.output()
    async with options.client() as client:
        async for event in client.vms.watch(deployment_id=deployment):
            if options.json:
                out.line(event)
                continue
            vm = event.vm or vm_pb.Vm()
            ready = ", ready" if vm.ready else ""
            out.plain(f"{when(event.at_ns)}  {vm.id}  {state_name(vm.state)}{ready}  {vm.reason}")
