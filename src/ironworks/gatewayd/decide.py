"""What gatewayd decides: pure functions of state, request and time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ironworks.gatewayd.types import (
    JOB_ENDED,
    ApiKey,
    Deployment,
    DeploymentSpec,
    DeploymentState,
    Endpoint,
    Host,
    HostState,
    Job,
    JobFailure,
    JobKind,
    JobResult,
    JobState,
    Replica,
    ReplicaState,
    Resources,
    Stage,
    StageKind,
    StageState,
    Tenant,
    TenantLimits,
    TenantState,
    shape_of,
)
from ironworks.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from ironworks.model.ids import derived_id
from ironworks.model.units import GIB, MIB, NS_PER_MS, NS_PER_SECOND
from ironworks.runtime.identity import Caller

HOST_DOWN_AFTER_SECONDS = 15
DEFAULT_PORT = 8080
MAX_REPLICAS = 100
HTTP_STATUSES = (100, 599)
MAX_LABELS = 64
MAX_LABEL_CHARS = 128
MAX_ENV_NAMES = 256
MAX_TEXT_BYTES = 64 * 1024
MAX_IMAGE_CHARS = 1000
MAX_DETAIL_CHARS = 200
_LABEL_CHARS = 63
_SUFFIX_CHARS = 10
_RANKS = {"viewer": 0, "billing": 1, "developer": 1, "admin": 2, "owner": 3, "operator": 4}
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NOT_NAME = re.compile(r"[^a-z0-9]+")


# --- identity -----------------------------------------------------------------------------------


def admit_key(key: ApiKey | None, tenant: Tenant | None, now_ns: int) -> ApiKey:
    """The key, if it may be exchanged for a token now.

    Raises:
        Unauthenticated: unknown, revoked or expired; one sentence for all.
        PermissionDenied: its tenant may not act.
    """
    if (
        key is None
        or key.revoked_at_ns
        or (key.expires_at_ns and key.expires_at_ns <= now_ns)
        or (key.tenant_id is not None and tenant is None)
    ):
        raise Unauthenticated(
            "This API key is not valid.", hint="Check it, or ask for a new one: it may have ended."
        )
    if tenant is not None and tenant.state is not TenantState.ACTIVE:
        because = f": {tenant.reason}" if tenant.reason else ""
        raise PermissionDenied(
            f"The tenant {tenant.name} is {tenant.state.value}{because}.",
            hint="Ask the platform's operator.",
        )
    return key


def check_grant(caller: Caller, tenant_id: str | None, roles: Sequence[str]) -> tuple[str, ...]:
    """The roles, sorted, if `caller` may make a credential with them for this tenant.

    Raises:
        InvalidRequest: no role, or one that does not go with the tenant.
        PermissionDenied: a role above the caller's own, or another's tenant.
    """
    if not roles or not set(roles) <= _RANKS.keys():
        raise InvalidRequest(f"roles must name at least one of {', '.join(_RANKS)}.")
    if ("operator" in roles) != (tenant_id is None) or (tenant_id is None and len(set(roles)) > 1):
        raise InvalidRequest(
            "The role operator belongs to the platform, the others to a tenant.",
            hint="Name a tenant and its roles, or only the role operator without a tenant.",
        )
    own = max((_RANKS[role] for role in caller.roles if role in _RANKS), default=-1)
    if not caller.is_operator and tenant_id != caller.tenant_id:
        raise PermissionDenied("A key can be made for the caller's own tenant only.")
    if any(_RANKS[role] > own for role in roles):
        raise PermissionDenied("A key cannot have roles above those of its maker.")
    return tuple(sorted(set(roles)))


def visible_tenant(caller: Caller, tenant_id: str) -> str | None:
    """The tenant that a read is about: the named one if the caller may see it, else None."""
    wanted = tenant_id or caller.tenant_id
    return wanted if caller.is_operator or wanted == caller.tenant_id else None


# --- requests -----------------------------------------------------------------------------------


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels, if they are within bounds."""
    if len(labels) > MAX_LABELS or any(
        not key or len(key) > MAX_LABEL_CHARS or len(value) > MAX_LABEL_CHARS
        for key, value in labels.items()
    ):
        raise InvalidRequest(
            f"At most {MAX_LABELS} labels, keys and values of at most {MAX_LABEL_CHARS} characters."
        )
    return dict(labels)


def _in_bounds(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{field} must be from {low} to {high}.")


def check_spec(spec: DeploymentSpec) -> DeploymentSpec:
    """The specification, if it is within bounds.

    Raises:
        InvalidRequest: it is not; says which field.
    """
    if not spec.image or len(spec.image) > MAX_IMAGE_CHARS or not spec.image.isprintable():
        raise InvalidRequest(
            f"spec.image must be a reference of 1 to {MAX_IMAGE_CHARS} characters.",
            hint="For example docker.io/library/nginx:1.27 or oci:/path/of/a/layout.",
        )
    _in_bounds("spec.replicas", spec.replicas, 0, MAX_REPLICAS)
    _in_bounds("spec.shape.vcpus", spec.vcpus, 1, 32)
    _in_bounds("spec.shape.memory_bytes", spec.memory_bytes, 64 * MIB, 64 * GIB)
    if spec.memory_bytes % MIB:
        raise InvalidRequest("spec.shape.memory_bytes must be a multiple of 1 MiB.")
    if spec.disk_bytes and not 16 * MIB <= spec.disk_bytes <= 1024 * GIB:
        raise InvalidRequest("spec.shape.disk_bytes must be 0, or from 16 MiB to 1 TiB.")
    _in_bounds("spec.port", spec.port, 0, 65_535)
    _in_bounds("spec.boot_timeout_ms", spec.boot_timeout_ms, 1_000, 600_000)
    _in_bounds("spec.readiness.period_ms", spec.readiness.period_ms, 100, 60_000)
    _in_bounds("spec.readiness.timeout_ms", spec.readiness.timeout_ms, 100, 60_000)
    _in_bounds("spec.readiness.failure_threshold", spec.readiness.failure_threshold, 1, 20)
    if spec.readiness.http_status:
        _in_bounds(
            "spec.readiness.http.expected_status", spec.readiness.http_status, *HTTP_STATUSES
        )
    path = spec.readiness.http_path
    if path and (not path.startswith("/") or len(path) > 2000):  # noqa: PLR2004 - as documented
        raise InvalidRequest("spec.readiness.http.path must begin with / and be 2,000 characters.")
    _check_program(spec)
    return spec


def _check_program(spec: DeploymentSpec) -> None:
    texts = [*spec.entrypoint, *spec.args]
    if sum(len(text.encode()) for text in texts) > MAX_TEXT_BYTES or any("\0" in t for t in texts):
        raise InvalidRequest("spec.entrypoint and spec.args may have 64 KiB in all, without NUL.")
    env_bytes = sum(len(name) + len(value.encode()) for name, value in spec.env.items())
    if len(spec.env) > MAX_ENV_NAMES or env_bytes > MAX_TEXT_BYTES:
        raise InvalidRequest(f"spec.env may have {MAX_ENV_NAMES} names and 64 KiB in all.")
    for name, value in spec.env.items():
        if not _ENV_NAME.fullmatch(name):
            raise InvalidRequest(f"spec.env: {name[:64]!r} is not a name of a variable.")
        if "\0" in value:
            raise InvalidRequest(f"spec.env: the value of variable {name} has a NUL.")


def name_of_image(image: str) -> str:
    """A name for a deployment whose maker gave none: `nginx` of `docker.io/library/nginx:1.27`."""
    last = image.split("@", maxsplit=1)[0].rstrip("/").rsplit("/", 1)[-1]
    stem = last.split(":")[0].lower().removesuffix(".tar")
    name = _NOT_NAME.sub("-", stem).strip("-")[:40].strip("-")
    return name or "app"


def endpoint_suffix(tenant_id: str) -> str:
    """What the host names of a tenant's deployments end in; 50 random bits of its id."""
    return tenant_id[-_SUFFIX_CHARS:]


def host_label(name: str, tenant_id: str) -> str:
    """First label of a deployment's host name: `<name>-<suffix>`, a DNS label of its own.

    The suffix has a fixed length, so no two tenants' names can meet; a name that is too long for
    that is cut and made unique by its hash.
    """
    room = _LABEL_CHARS - _SUFFIX_CHARS - 1
    if len(name) > room:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: room - 9]}-{digest}"
    return f"{name}-{endpoint_suffix(tenant_id)}"


def endpoint_url(label: str, domain: str, edge_port: int) -> str:
    """The URL of a deployment."""
    port = "" if edge_port == 443 else f":{edge_port}"  # noqa: PLR2004 - the default of https
    return f"https://{label}.{domain}{port}/"


def check_limits(
    limits: TenantLimits, *, deployments: int, used: Resources, wanted: DeploymentSpec
) -> None:
    """Return if a tenant that uses this much may have one deployment more.

    Raises:
        ResourceExhausted: it may not; says which limit.
    """
    shape = shape_of(wanted)
    after = used
    for _ in range(wanted.replicas):
        after = after + shape
    for name, have, limit in (
        ("deployments", deployments + 1, limits.deployments),
        ("VMs", after.vms, limits.vms),
        ("vCPUs", after.vcpus, limits.vcpus),
        ("bytes of memory", after.memory_bytes, limits.memory_bytes),
    ):
        if have > limit:
            raise ResourceExhausted(
                f"This would make {have} {name}; the tenant's limit is {limit}.",
                hint="Delete something, or ask the operator for more.",
            )


# --- hosts --------------------------------------------------------------------------------------


def host_state(host: Host, now_ns: int) -> HostState:
    """The state with silence, and what the host says of itself, taken into account."""
    if now_ns - host.last_heartbeat_at_ns > HOST_DOWN_AFTER_SECONDS * NS_PER_SECOND:
        return HostState.DOWN
    return host.reported if host.state is HostState.READY else host.state


# --- jobs ---------------------------------------------------------------------------------------

_STAGES = {
    JobKind.CREATE_DEPLOYMENT: (
        StageKind.RESOLVING,
        StageKind.BUILDING,
        StageKind.PLACING,
        StageKind.CREATING,
        StageKind.BOOTING,
        StageKind.ROUTING,
    ),
    JobKind.DELETE_DEPLOYMENT: (StageKind.ROUTING, StageKind.STOPPING, StageKind.DELETING),
}


def stages_of(kind: JobKind) -> tuple[Stage, ...]:
    """The stages of a new job, in order."""
    return tuple(Stage(kind=stage) for stage in _STAGES[kind])


def _changed(job: Job, now_ns: int) -> Job:
    return replace(job, version=job.version + 1, updated_at_ns=now_ns)


def begin_job(job: Job, now_ns: int) -> Job:
    """The job at work; one that is at work or has ended stays as it is."""
    if job.state is not JobState.QUEUED:
        return job
    return _changed(replace(job, state=JobState.RUNNING), now_ns)


def set_stage(
    job: Job,
    kind: StageKind,
    state: StageState,
    now_ns: int,
    *,
    detail: str | None = None,
    total: int | None = None,
    done: int | None = None,
) -> Job:
    """The job with one stage changed: times kept from the first time, UNDOING appended if absent.

    A stage that has ended stays ended, unless it is the repetition after a crash of the stage that
    was last: what ran again tells its new times.
    """
    stages = list(job.stages)
    places = [place for place, stage in enumerate(stages) if stage.kind is kind]
    if not places:
        stages.append(Stage(kind=kind))
        places = [len(stages) - 1]
    old = stages[places[0]]
    ended = state in {StageState.COMPLETED, StageState.FAILED, StageState.SKIPPED}
    stages[places[0]] = Stage(
        kind=kind,
        state=state,
        started_at_ns=old.started_at_ns or (0 if state is StageState.PENDING else now_ns),
        ended_at_ns=(old.ended_at_ns or now_ns) if ended else 0,
        detail=old.detail if detail is None else detail[:MAX_DETAIL_CHARS],
        items_total=old.items_total if total is None else total,
        items_done=old.items_done if done is None else done,
    )
    if tuple(stages) == job.stages:
        return job
    return _changed(replace(job, stages=tuple(stages)), now_ns)


def running_stage(job: Job) -> StageKind | None:
    """The stage at work, the last one if there are several."""
    at_work = [stage.kind for stage in job.stages if stage.state is StageState.RUNNING]
    return at_work[-1] if at_work else None


def not_ready(*, booted: bool, port: int, timeout_ms: int) -> DeadlineExceeded:
    """Why a VM was given up, as its application, or the host, is to be looked at."""
    seconds = f"{timeout_ms / 1000:g} seconds"
    if booted:
        return DeadlineExceeded(
            f"Nothing accepted a connection on port {port} of the VM within {seconds}.",
            hint="Does the image listen on that port? Give its port with the deployment.",
        )
    return DeadlineExceeded(
        f"The VM was still booting after {seconds}.",
        hint="The host may be busy: try again, or give the deployment a longer boot timeout.",
    )


def failed_stage(job: Job) -> StageKind | None:
    """The stage that an error happened in: the one at work, or the one that failed before."""
    failed = [stage.kind for stage in job.stages if stage.state is StageState.FAILED]
    return failed[0] if failed else running_stage(job)


def fail_stage(job: Job, now_ns: int) -> Job:
    """The job with the stage at work failed."""
    kind = running_stage(job)
    return job if kind is None else set_stage(job, kind, StageState.FAILED, now_ns)


def complete_job(job: Job, result: JobResult, now_ns: int) -> Job:
    """The job, ended well; an ended job stays as it ended."""
    if job.state in JOB_ENDED:
        return job
    done = replace(job, state=JobState.COMPLETED, result=result, ended_at_ns=now_ns)
    return _changed(done, now_ns)


def end_job_badly(job: Job, error: IronError, stage: StageKind | None, now_ns: int) -> Job:
    """The job, Cancelled if that was asked for, else Failed; an ended job stays as it ended."""
    if job.state in JOB_ENDED:
        return job
    if job.state is JobState.CANCELLING:
        return _changed(replace(job, state=JobState.CANCELLED, ended_at_ns=now_ns), now_ns)
    failure = JobFailure(code=error.code, message=str(error), stage=stage)
    failed = replace(job, state=JobState.FAILED, failure=failure, ended_at_ns=now_ns)
    return _changed(failed, now_ns)


def cancel_job(job: Job, now_ns: int) -> Job:
    """The job asked to stop.

    Raises:
        FailedPrecondition: it is of a kind that cannot be stopped.
    """
    if job.state in JOB_ENDED or job.state is JobState.CANCELLING:
        return job
    if job.kind in {JobKind.DELETE_DEPLOYMENT, JobKind.DELETE_TENANT}:
        raise FailedPrecondition("A deletion cannot be cancelled.")
    return _changed(replace(job, state=JobState.CANCELLING), now_ns)


# --- deployments --------------------------------------------------------------------------------


def vm_id_of(deployment_id: str, generation: int, index: int) -> str:
    """The id of a replica's VM: always the same, so that work which runs again finds its own."""
    return derived_id("vm", deployment_id, str(generation), str(index))


def argv_of(
    spec: DeploymentSpec, image_entrypoint: Sequence[str], image_cmd: Sequence[str]
) -> tuple[str, ...]:
    """The command line of a replica; empty: nothing was overridden, the guest follows the image.

    As containers have it: an entrypoint of one's own drops the image's cmd.
    """
    if not spec.entrypoint and not spec.args:
        return ()
    if spec.entrypoint:
        return (*spec.entrypoint, *spec.args)
    return (*image_entrypoint, *(spec.args or image_cmd))


def port_of(spec: DeploymentSpec, exposed_ports: Sequence[str]) -> int:
    """The application's port: as asked for, else the first TCP port of the image, else 8080."""
    if spec.port:
        return spec.port
    for text in exposed_ports:
        number, _, protocol = text.partition("/")
        if protocol.lower() in {"", "tcp"} and number.isdecimal() and 0 < int(number) < 65_536:  # noqa: PLR2004
            return int(number)
    return DEFAULT_PORT


def boot_ms(replica: Replica, ready_at_ns: int) -> int:
    """From the order to boot until the port accepted a connection."""
    return max(0, ready_at_ns - replica.boot_ordered_at_ns) // NS_PER_MS


_SERVING = frozenset({DeploymentState.RUNNING, DeploymentState.DEGRADED, DeploymentState.UPDATING})


def endpoint_of(deployment: Deployment, replicas: Sequence[Replica]) -> Endpoint | None:
    """The route that a deployment shall have now; None for none."""
    if deployment.state not in _SERVING:
        return None
    addresses = tuple(
        sorted(
            (replica.address, deployment.port)
            for replica in replicas
            if replica.state is ReplicaState.READY and replica.address
        )
    )
    return Endpoint(host_label=deployment.host_label, addresses=addresses)
