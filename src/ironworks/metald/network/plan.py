"""What the network of one VM is to be: all of it comes from the store."""

from dataclasses import dataclass, field

from ironworks.metald.types import NetworkSpec, Vm


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Whose fabric a VM is in, what it may say, and how fast."""

    tenant_id: str = ""
    """Empty: of nobody; it reaches no other VM."""
    network: NetworkSpec = field(default_factory=NetworkSpec)
    in_bytes_per_second: int = 0
    """What the guest may receive; 0: no limit."""
    out_bytes_per_second: int = 0
    """What the guest may send; 0: no limit."""

    @property
    def leaves_the_host(self) -> bool:
        """Whether packets of it are to pass between the fabric and other networks."""
        return bool(self.network.egress or self.network.published_ports or self.network.nameservers)


def plan_of(vm: Vm) -> Plan:
    """The plan that a VM's record says."""
    return Plan(
        tenant_id=vm.tenant_id,
        network=vm.spec.network,
        in_bytes_per_second=vm.spec.rate_limits.network_in_bytes,
        out_bytes_per_second=vm.spec.rate_limits.network_out_bytes,
    )
