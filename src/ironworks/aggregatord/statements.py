"""The statements that compute rollups in the engine, from windows to hours to days.

They say in SQL what `metering.quantities` says in Python; a property test holds them together. All
sums are of 128-bit integers.
"""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.aggregatord.metering import METER_OF
from ironworks.aggregatord.types import DAY_NS, FIVE_MINUTES_NS, HOUR_NS
from ironworks.gen.ironworks.aggregatord.v1.usage_pb import Meter
from ironworks.model.units import NS_PER_US

_SUMS: Mapping[Meter, str] = {
    Meter.VCPU_PROVISIONED: f"sum(toInt128(vcpus) * elapsed_us) * {NS_PER_US}",
    Meter.MEMORY_PROVISIONED: f"sum(toInt128(memory_limit_bytes) * elapsed_us) * {NS_PER_US}",
    Meter.DISK_PROVISIONED: f"sum(toInt128(disk_limit_bytes) * elapsed_us) * {NS_PER_US}",
    Meter.MEMORY_USED: f"sum(toInt128(held_byte_us)) * {NS_PER_US}",
    **{meter: f"sum(toInt128(grown_{name}))" for name, meter in METER_OF.items()},
    Meter.NETWORK_OUT_INTERNET: (
        "sum(toInt128(grown_network_transmit_bytes) - grown_network_internal_bytes)"
    ),
}
QUANTITIES = "[" + ", ".join(f"({int(meter)}, {what})" for meter, what in _SUMS.items()) + "]"
"""Of a group of windows: an array of (meter, quantity)."""

_OF_THESE = "vm_id IN {vms:Array(String)}"
_HOUR = f"intDiv(start_at_ns, {HOUR_NS}) * {HOUR_NS}"
_WINDOWS = (
    f"windows FINAL WHERE {_OF_THESE} AND start_at_ns >= {{from:Int64}}"
    f" AND start_at_ns < {{to:Int64}} AND has({{hours:Array(Int64)}}, {_HOUR})"
)
_USAGE = "tenant_id, vm_id, deployment_id, boot_epoch, start_ns, meter, quantity, version"

ROLL_HOURS = (
    f"INSERT INTO hourly_usage ({_USAGE})"  # noqa: S608 - our constants
    " SELECT tenant, vm_id, deployment, boot_epoch, at, pair.1, pair.2, {version:UInt64} FROM"
    f" (SELECT any(tenant_id) AS tenant, vm_id, argMax(deployment_id, first_seq) AS deployment,"
    f" boot_epoch, {_HOUR} AS at, {QUANTITIES} AS pairs FROM {_WINDOWS}"
    " GROUP BY vm_id, boot_epoch, at) ARRAY JOIN pairs AS pair"
)

_FIVE = f"intDiv(start_at_ns, {FIVE_MINUTES_NS}) * {FIVE_MINUTES_NS}"
ROLL_RATES = (
    "INSERT INTO five_minute_rates (tenant_id, vm_id, deployment_id, boot_epoch, start_ns,"  # noqa: S608 - our constants
    " receive_bytes, transmit_bytes, version)"
    f" SELECT any(tenant_id), vm_id, argMax(deployment_id, first_seq), boot_epoch, {_FIVE} AS at,"
    " sum(grown_network_receive_bytes), sum(grown_network_transmit_bytes), {version:UInt64}"
    f" FROM {_WINDOWS} GROUP BY vm_id, boot_epoch, at"
)

_DAY = f"intDiv(start_ns, {DAY_NS}) * {DAY_NS}"
ROLL_DAYS = (
    f"INSERT INTO daily_usage ({_USAGE})"  # noqa: S608 - our constants
    " SELECT any(tenant_id), vm_id, argMax(deployment_id, start_ns), boot_epoch,"
    f" {_DAY} AS at, meter, sum(quantity), {{version:UInt64}} FROM hourly_usage FINAL"
    f" WHERE {_OF_THESE} AND start_ns >= {{from:Int64}} AND start_ns < {{to:Int64}}"
    f" AND has({{days:Array(Int64)}}, {_DAY}) GROUP BY vm_id, boot_epoch, at, meter"
)
