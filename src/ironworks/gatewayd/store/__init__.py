"""Every SQL statement of gatewayd: functions that take a `Connection`, one transaction each."""

from ironworks.gatewayd.store import deployments as deployments
from ironworks.gatewayd.store import hosts as hosts
from ironworks.gatewayd.store import jobs as jobs
from ironworks.gatewayd.store import tenants as tenants
