"""What a specification must satisfy, pure."""

import re

from ironworks.metald import decide_network
from ironworks.metald import types as t
from ironworks.metald.types import VmSpec
from ironworks.model.errors import InvalidRequest
from ironworks.model.ids import check_id, check_name
from ironworks.model.units import MIB, format_bytes

_ENV = re.compile(r"[^=\0]+=[^\0]*")
_LABEL_KEY = re.compile(r"[a-z0-9._/-]{1,63}")
_SIGNAL = re.compile(r"(SIG)?[A-Z][A-Z0-9+-]{1,15}|[0-9]{1,2}")
_HTTP_PATH = re.compile(r"/[!-~]*")
_LABEL_VALUE_CHARS = 255
_HTTP_STATUSES = (100, 599)
MIN_DISK_BYTES = 16 * MIB
"""Below it there is no room for a file system worth having."""
MAX_DISK_BYTES = 1024 * 1024 * MIB


def _bounded(value: float, low: float, high: float, what: str) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{what} must be {low:g} to {high:g}.")


def check_spec(spec: VmSpec) -> VmSpec:
    """The spec if all of it is within bounds.

    Raises:
        InvalidRequest: it is not; says what.
    """
    check_name(spec.name, "spec.name")
    _bounded(spec.vcpus, t.MIN_VCPUS, t.MAX_VCPUS, "spec.vcpus")
    if not t.MIN_MEMORY_BYTES <= spec.memory_bytes <= t.MAX_MEMORY_BYTES:
        raise InvalidRequest(
            f"spec.memory_bytes must be {format_bytes(t.MIN_MEMORY_BYTES)} to "
            f"{format_bytes(t.MAX_MEMORY_BYTES)}."
        )
    if spec.memory_bytes % MIB:
        raise InvalidRequest("spec.memory_bytes must be a multiple of 1 MiB.")
    _bounded(spec.cpu_weight, t.MIN_CPU_WEIGHT, t.MAX_CPU_WEIGHT, "spec.cpu_weight")
    check_id(spec.rootfs_asset_id, "ast", "spec.assets.rootfs_asset_id")
    for asset_id, field in (
        (spec.kernel_asset_id, "spec.assets.kernel_asset_id"),
        (spec.initrd_asset_id, "spec.assets.initrd_asset_id"),
    ):
        if asset_id:
            check_id(asset_id, "ast", field)
    if spec.deployment_id:
        check_id(spec.deployment_id, "dep", "spec.deployment_id")
    if spec.disk_bytes and not MIN_DISK_BYTES <= spec.disk_bytes <= MAX_DISK_BYTES:
        raise InvalidRequest(
            f"spec.disk_bytes must be 0, or {format_bytes(MIN_DISK_BYTES)} to "
            f"{format_bytes(MAX_DISK_BYTES)}."
        )
    _check_workload(spec.workload)
    if spec.readiness is not None:
        _check_readiness(spec.readiness)
    check_restart(spec.restart, "spec.restart")
    decide_network.check_network(spec.network)
    decide_network.check_rate_limits(spec.rate_limits)
    _check_labels(spec)
    return spec


def _check_workload(workload: t.Workload) -> None:
    if len(workload.argv) > t.MAX_ARGV or len(workload.env) > t.MAX_ENV:
        raise InvalidRequest(
            f"spec.workload has more than {t.MAX_ARGV} arguments or {t.MAX_ENV} variables."
        )
    texts = (*workload.argv, *workload.env, workload.user, workload.working_directory)
    if any("\0" in text for text in texts):
        raise InvalidRequest("spec.workload has a NUL character.")
    if sum(len(text.encode()) + 1 for text in texts) > t.MAX_ARGV_BYTES:
        raise InvalidRequest(f"spec.workload is larger than {format_bytes(t.MAX_ARGV_BYTES)}.")
    if workload.argv and not workload.argv[0]:
        raise InvalidRequest("The first word of spec.workload.argv, the program, is empty.")
    for pair in workload.env:
        if not _ENV.fullmatch(pair):
            raise InvalidRequest("Every item of spec.workload.env must read NAME=value.")
    if workload.working_directory and not workload.working_directory.startswith("/"):
        raise InvalidRequest("spec.workload.working_directory must be an absolute path.")
    if workload.stop_signal and not _SIGNAL.fullmatch(workload.stop_signal):
        raise InvalidRequest(
            "spec.workload.stop_signal must be a name such as SIGTERM, or a number."
        )
    _bounded(workload.stop_grace_seconds, 0.1, 300, "spec.workload.stop_grace_seconds")


def _check_readiness(readiness: t.Readiness) -> None:
    kind = "http.port" if readiness.http_path else "tcp_port"
    _bounded(readiness.port, 1, t.MAX_PORT, f"spec.readiness.{kind}")
    path = readiness.http_path
    if path and (len(path) > t.MAX_PATH_CHARS or not _HTTP_PATH.fullmatch(path)):
        raise InvalidRequest(
            "spec.readiness.http.path must begin with /, have no blanks, and at most "
            f"{t.MAX_PATH_CHARS} characters."
        )
    if readiness.expected_status:
        _bounded(readiness.expected_status, *_HTTP_STATUSES, "spec.readiness.http.expected_status")
    _bounded(readiness.period_seconds, 0.05, 60, "spec.readiness.period_seconds")
    _bounded(readiness.timeout_seconds, 0.05, 60, "spec.readiness.timeout_seconds")
    for name in ("failure_threshold", "success_threshold"):
        _bounded(getattr(readiness, name), 1, t.MAX_THRESHOLD, f"spec.readiness.{name}")


def check_restart(policy: t.RestartPolicy, field: str) -> None:
    """Refuse a policy out of bounds.

    Raises:
        InvalidRequest: says what.
    """
    low, high = policy.min_backoff_seconds, policy.max_backoff_seconds
    _bounded(low, 0.1, t.MAX_BACKOFF_SECONDS, f"{field}.min_backoff_seconds")
    _bounded(high, 0.1, t.MAX_BACKOFF_SECONDS, f"{field}.max_backoff_seconds")
    if high < low:
        raise InvalidRequest(f"{field}.max_backoff_seconds is less than min_backoff_seconds.")
    _bounded(policy.max_restarts, 1, t.MAX_RESTARTS, f"{field}.max_restarts")


def _check_labels(spec: VmSpec) -> None:
    if len(spec.labels) > t.MAX_LABELS:
        raise InvalidRequest(f"spec.labels has more than {t.MAX_LABELS} labels.")
    for key, value in spec.labels.items():
        if not _LABEL_KEY.fullmatch(key) or len(value) > _LABEL_VALUE_CHARS:
            raise InvalidRequest(
                "Keys of spec.labels must be 1 to 63 characters of a-z, 0-9 and ._/-, values at "
                f"most {_LABEL_VALUE_CHARS} characters."
            )
