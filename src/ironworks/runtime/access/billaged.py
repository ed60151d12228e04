"""Who may call billaged."""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.runtime.access.rule import OPERATORS, Access

_METER = "ironworks.billaged.v1.MeterService"

ACCESS: Mapping[str, Access] = {
    f"{_METER}/StreamMetrics": Access(services=frozenset({"metald"})),
    f"{_METER}/RecordEvents": Access(services=frozenset({"metald"})),
    f"{_METER}/FlushWindows": Access(services=frozenset({"metald", "gatewayd"}), roles=OPERATORS),
    f"{_METER}/GetStatus": Access(services=frozenset({"metald", "gatewayd"}), roles=OPERATORS),
}
