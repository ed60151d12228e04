"""How networks and limits of VMs look on the wire; pure."""

from ironworks.gen.ironworks.metald.v1 import vm_pb as pb
from ironworks.metald.app.context import Context
from ironworks.metald.decide_network import normal_cidr
from ironworks.metald.network import naming
from ironworks.metald.network.stats import NetworkStats
from ironworks.metald.types import (
    EgressRule,
    NetworkSpec,
    Protocol,
    PublishedPort,
    RateLimits,
    Vm,
)
from ironworks.model.errors import InvalidRequest

_PROTOCOLS = {
    pb.TransportProtocol.UNSPECIFIED: Protocol.ANY,
    pb.TransportProtocol.TCP: Protocol.TCP,
    pb.TransportProtocol.UDP: Protocol.UDP,
}
_PROTOCOLS_OUT = {protocol: number for number, protocol in _PROTOCOLS.items()}


def _protocol(number: pb.TransportProtocol, field: str) -> Protocol:
    if number not in _PROTOCOLS:
        raise InvalidRequest(f"{field}.protocol is none that exists.")
    return _PROTOCOLS[number]


def read_network(message: pb.VmNetworkSpec | None) -> NetworkSpec:
    """What a VM may say; bounds are checked by `decide_network`.

    Raises:
        InvalidRequest: a CIDR or a protocol is none.
    """
    if message is None:
        return NetworkSpec()
    return NetworkSpec(
        egress=tuple(
            EgressRule(
                cidr=normal_cidr(rule.cidr, f"spec.network.egress[{index}].cidr"),
                first_port=rule.first_port,
                last_port=rule.last_port or rule.first_port,
                protocol=_protocol(rule.protocol, f"spec.network.egress[{index}]"),
            )
            for index, rule in enumerate(message.egress)
        ),
        published_ports=tuple(
            PublishedPort(
                guest_port=port.guest_port,
                host_port=port.host_port,
                protocol=_published(port.protocol, f"spec.network.published_ports[{index}]"),
            )
            for index, port in enumerate(message.published_ports)
        ),
        nameservers=tuple(message.nameservers),
    )


def _published(number: pb.TransportProtocol, field: str) -> Protocol:
    protocol = _protocol(number, field)
    return Protocol.TCP if protocol is Protocol.ANY else protocol


def read_rate_limits(message: pb.RateLimits | None) -> RateLimits:
    """Limits of a VM; bounds are checked by `decide_network`."""
    if message is None:
        return RateLimits()
    return RateLimits(
        disk_bytes=message.disk_bytes_per_second,
        disk_operations=message.disk_operations_per_second,
        network_in_bytes=message.network_in_bytes_per_second,
        network_out_bytes=message.network_out_bytes_per_second,
    )


def network_message(network: NetworkSpec) -> pb.VmNetworkSpec:
    """What a VM may say, as callers see it."""
    return pb.VmNetworkSpec(
        egress=[
            pb.EgressRule(
                cidr=rule.cidr,
                first_port=rule.first_port,
                last_port=rule.last_port,
                protocol=_PROTOCOLS_OUT[rule.protocol],
            )
            for rule in network.egress
        ],
        published_ports=_ports(network),
        nameservers=list(network.nameservers),
    )


def _ports(network: NetworkSpec) -> list[pb.PublishedPort]:
    return [
        pb.PublishedPort(
            host_port=port.host_port,
            guest_port=port.guest_port,
            protocol=_PROTOCOLS_OUT[port.protocol],
        )
        for port in network.published_ports
    ]


def rate_limits_message(limits: RateLimits) -> pb.RateLimits:
    """Limits as callers see them."""
    return pb.RateLimits(
        disk_bytes_per_second=limits.disk_bytes,
        disk_operations_per_second=limits.disk_operations,
        network_in_bytes_per_second=limits.network_in_bytes,
        network_out_bytes_per_second=limits.network_out_bytes,
    )


def place_message(vm: Vm, context: Context) -> pb.VmNetwork | None:
    """Where a VM can be reached; None before it has a VMM."""
    if vm.slot is None or vm.evidence is None:
        return None
    names = context.network.names(vm.slot)
    return pb.VmNetwork(
        fabric_address=str(names.address),
        fabric_address_v6=str(names.address_v6),
        mac=naming.GUEST_MAC,
        guest_address=str(naming.GUEST_ADDRESS),
        published_ports=_ports(vm.spec.network),
    )


def stats_message(stats: NetworkStats) -> pb.GetVmNetworkStatsResponse:
    """What a VM's firewall has done."""
    return pb.GetVmNetworkStatsResponse(
        in_bytes=stats.in_bytes,
        out_bytes=stats.out_bytes,
        denied=[
            pb.DeniedTraffic(rule=one.rule, packets=one.packets, bytes=one.bytes)
            for one in stats.denied
        ],
    )
