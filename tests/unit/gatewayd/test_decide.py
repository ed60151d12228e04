from __future__ import annotations

from dataclasses import replace

import pytest

from ironworks.gatewayd import decide
from ironworks.gatewayd.types import (
    ApiKey,
    Deployment,
    DeploymentSpec,
    DeploymentState,
    Host,
    HostState,
    Job,
    JobKind,
    JobResult,
    JobState,
    Readiness,
    Replica,
    ReplicaState,
    Resources,
    StageKind,
    StageState,
    Tenant,
    TenantLimits,
    TenantState,
)
from ironworks.model.errors import (
    FailedPrecondition,
    Internal,
    InvalidRequest,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from ironworks.model.ids import derived_id
from ironworks.model.units import GIB, MIB, NS_PER_SECOND
from ironworks.runtime.identity import Caller

TENANT_ID = derived_id("tnt", "one")
OTHER_ID = derived_id("tnt", "two")
NOW_NS = 1_000 * NS_PER_SECOND

KEY = ApiKey(
    api_key_id=derived_id("key", "one"),
    tenant_id=TENANT_ID,
    name="one",
    roles=("developer",),
    hint="iwk_abcdef",
    created_at_ns=1,
    expires_at_ns=0,
    revoked_at_ns=0,
    last_used_at_ns=0,
)
TENANT = Tenant(
    tenant_id=TENANT_ID,
    name="acme",
    display_name="Acme",
    state=TenantState.ACTIVE,
    reason="",
    labels={},
    created_at_ns=1,
    updated_at_ns=1,
)
DEPLOYMENT = Deployment(
    deployment_id=derived_id("dep", "one"),
    tenant_id=TENANT_ID,
    name="web",
    spec=DeploymentSpec(image="web"),
    state=DeploymentState.RUNNING,
    reason="",
    host_label="web-x",
    image_digest="",
    build_id="",
    rootfs_asset_id="",
    build_ms=0,
    build_reused=False,
    argv=(),
    port=80,
    generation=1,
    job_id="",
    labels={},
    created_at_ns=1,
    updated_at_ns=1,
)
REPLICA = Replica(
    vm_id=derived_id("vm", "one"),
    deployment_id=DEPLOYMENT.deployment_id,
    tenant_id=TENANT_ID,
    index=0,
    generation=1,
    host_id=derived_id("hst", "one"),
    zone="",
    state=ReplicaState.READY,
    reason="",
    address="198.18.0.1",
    resources=Resources(),
    boot_ordered_at_ns=NS_PER_SECOND,
    boot_ms=0,
)


def user(*roles: str, tenant_id: str | None = TENANT_ID) -> Caller:
    return Caller(kind="user", subject="key", tenant_id=tenant_id, roles=frozenset(roles))


def job(kind: JobKind = JobKind.CREATE_DEPLOYMENT) -> Job:
    return Job(
        job_id=derived_id("job", "one"),
        tenant_id=TENANT_ID,
        kind=kind,
        resource_id=DEPLOYMENT.deployment_id,
        state=JobState.QUEUED,
        stages=decide.stages_of(kind),
        result=None,
        failure=None,
        request_id="",
        grace_ms=0,
        created_at_ns=1,
        updated_at_ns=1,
        ended_at_ns=0,
        version=1,
    )


def test_only_a_living_key_of_an_active_tenant_is_admitted() -> None:
    assert decide.admit_key(KEY, TENANT, NOW_NS) is KEY
    operator = replace(KEY, tenant_id=None)
    assert decide.admit_key(operator, None, NOW_NS) is operator
    later = replace(KEY, expires_at_ns=NOW_NS + 1)
    assert decide.admit_key(later, TENANT, NOW_NS) is later
    ended = [
        None,
        replace(KEY, revoked_at_ns=1),
        replace(KEY, expires_at_ns=NOW_NS),
    ]
    sentences: set[str] = set()
    for key in ended:
        with pytest.raises(Unauthenticated) as error:
            decide.admit_key(key, TENANT, NOW_NS)
        sentences.add(str(error.value))
    assert len(sentences) == 1
    with pytest.raises(Unauthenticated):
        decide.admit_key(KEY, None, NOW_NS)
    with pytest.raises(PermissionDenied, match="unpaid"):
        decide.admit_key(KEY, replace(TENANT, state=TenantState.SUSPENDED, reason="unpaid"), NOW_NS)


def test_grants_stay_below_their_maker_and_within_the_tenant() -> None:
    assert decide.check_grant(user("admin"), TENANT_ID, ["viewer", "developer"]) == (
        "developer",
        "viewer",
    )
    operator = user("operator", tenant_id=None)
    assert decide.check_grant(operator, None, ["operator"]) == ("operator",)
    assert decide.check_grant(operator, OTHER_ID, ["owner"]) == ("owner",)
    with pytest.raises(PermissionDenied):
        decide.check_grant(user("admin"), TENANT_ID, ["owner"])
    with pytest.raises(PermissionDenied):
        decide.check_grant(user("owner"), OTHER_ID, ["viewer"])
    for tenant_id, roles in ((TENANT_ID, []), (TENANT_ID, ["king"]), (TENANT_ID, ["operator"])):
        with pytest.raises(InvalidRequest):
            decide.check_grant(user("owner"), tenant_id, roles)
    with pytest.raises(InvalidRequest):
        decide.check_grant(operator, None, ["viewer"])


def test_a_tenant_is_visible_to_itself_and_to_operators() -> None:
    assert decide.visible_tenant(user("viewer"), "") == TENANT_ID
    assert decide.visible_tenant(user("viewer"), TENANT_ID) == TENANT_ID
    assert decide.visible_tenant(user("owner"), OTHER_ID) is None
    assert decide.visible_tenant(user("operator", tenant_id=None), OTHER_ID) == OTHER_ID


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image": ""}, "image"),
        ({"image": "a\nb"}, "image"),
        ({"image": "a" * 1001}, "image"),
        ({"replicas": 101}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"vcpus": 33}, "vcpus"),
        ({"memory_bytes": 63 * MIB}, "memory_bytes"),
        ({"memory_bytes": 64 * GIB + MIB}, "memory_bytes"),
        ({"memory_bytes": 64 * MIB + 1}, "1 MiB"),
        ({"disk_bytes": -1}, "disk_bytes"),
        ({"disk_bytes": 1}, "disk_bytes"),
        ({"port": 65_536}, "port"),
        ({"boot_timeout_ms": 999}, "boot_timeout_ms"),
        ({"readiness": Readiness(http_path="x")}, "path"),
        ({"readiness": Readiness(period_ms=1)}, "period_ms"),
        ({"readiness": Readiness(http_path="/", http_status=99)}, "expected_status"),
        ({"env": {"1A": "x"}}, "variable"),
        ({"env": {"A": "x\0"}}, "variable"),
        ({"env": {"A": "x" * 65_536}}, "64 KiB"),
        ({"args": ("a\0",)}, "NUL"),
        ({"entrypoint": ("x" * 65_537,)}, "64 KiB"),
    ],
)
def test_specifications_out_of_bounds_are_refused(change: dict[str, object], word: str) -> None:
    spec = DeploymentSpec(image="web")
    assert decide.check_spec(spec) is spec
    with pytest.raises(InvalidRequest, match=word):
        decide.check_spec(replace(spec, **change))  # pyright: ignore[reportArgumentType]


def test_labels_are_bounded() -> None:
    assert decide.check_labels({"a": "b"}) == {"a": "b"}
    for labels in ({"": "b"}, {"a" * 129: ""}, {"a": "b" * 129}, {str(n): "" for n in range(65)}):
        with pytest.raises(InvalidRequest):
            decide.check_labels(labels)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("docker.io/library/nginx:1.27", "nginx"),
        ("registry:5000/Team/My_App@sha256:ab", "my-app"),
        ("oci:/images/demo", "demo"),
        ("oci-archive:/x/web.tar", "web"),
        ("///", "app"),
        ("x" * 100, "x" * 40),
    ],
)
def test_names_are_made_of_images(image: str, name: str) -> None:
    assert decide.name_of_image(image) == name


def test_endpoints_have_names_and_urls() -> None:
    label = decide.host_label("web", TENANT_ID)
    assert label == f"web-{TENANT_ID[-10:]}"
    assert len(decide.host_label("w" * 63, TENANT_ID)) == 63
    assert decide.host_label("w" * 63, TENANT_ID) != decide.host_label("w" * 62, TENANT_ID)
    assert decide.endpoint_url("web-x", "example.com", 443) == "https://web-x.example.com/"
    assert decide.endpoint_url("web-x", "example.com", 8443) == "https://web-x.example.com:8443/"


def test_limits_hold_for_each_kind() -> None:
    limits = TenantLimits(deployments=2, vms=4, vcpus=4, memory_bytes=GIB)
    spec = DeploymentSpec(image="web", replicas=2, memory_bytes=256 * MIB)
    decide.check_limits(limits, deployments=1, used=Resources(vms=2, vcpus=2), wanted=spec)
    for deployments, used, word in (
        (2, Resources(), "deployments"),
        (0, Resources(vms=3), "VMs"),
        (0, Resources(vcpus=3), "vCPUs"),
        (0, Resources(memory_bytes=600 * MIB), "memory"),
    ):
        with pytest.raises(ResourceExhausted, match=word):
            decide.check_limits(limits, deployments=deployments, used=used, wanted=spec)


def test_a_silent_host_is_down() -> None:
    host = Host(
        host_id=derived_id("hst", "one"),
        name="one",
        metald_url="http://127.0.0.1:1",
        zone="",
        region="",
        architecture="amd64",
        driver="qemu",
        acceleration="tcg",
        capacity=Resources(),
        allocated=Resources(),
        labels={},
        state=HostState.CORDONED,
        version="",
        registered_at_ns=0,
        last_heartbeat_at_ns=NOW_NS,
    )
    assert decide.host_state(host, NOW_NS + 15 * NS_PER_SECOND) is HostState.CORDONED
    assert decide.host_state(host, NOW_NS + 16 * NS_PER_SECOND) is HostState.DOWN
    told = replace(host, state=HostState.READY, reported=HostState.DRAINING)
    assert decide.host_state(told, NOW_NS) is HostState.DRAINING
    # What the directory was told goes before what the host says.
    both = replace(told, state=HostState.CORDONED)
    assert decide.host_state(both, NOW_NS) is HostState.CORDONED


def test_stages_keep_their_first_times() -> None:
    running = decide.set_stage(job(), StageKind.RESOLVING, StageState.RUNNING, 5, detail="x" * 300)
    assert running.version == 2
    assert len(running.stages[0].detail) == 200
    again = decide.set_stage(running, StageKind.RESOLVING, StageState.RUNNING, 9)
    assert again is running
    done = decide.set_stage(running, StageKind.RESOLVING, StageState.COMPLETED, 9)
    assert (done.stages[0].started_at_ns, done.stages[0].ended_at_ns) == (5, 9)
    assert decide.running_stage(running) is StageKind.RESOLVING
    assert decide.running_stage(done) is None
    failed = decide.fail_stage(running, 7)
    assert failed.stages[0].state is StageState.FAILED
    assert decide.failed_stage(failed) is StageKind.RESOLVING
    assert decide.failed_stage(running) is StageKind.RESOLVING
    assert decide.failed_stage(done) is None
    undoing = decide.set_stage(done, StageKind.UNDOING, StageState.RUNNING, 9)
    assert [stage.kind for stage in undoing.stages][-1] is StageKind.UNDOING
    assert decide.fail_stage(done, 9) is done


def test_jobs_end_once() -> None:
    running = decide.begin_job(job(), 2)
    assert running.state is JobState.RUNNING
    assert decide.begin_job(running, 3) is running
    done = decide.complete_job(running, JobResult(endpoint="x"), 4)
    assert (done.state, done.ended_at_ns) == (JobState.COMPLETED, 4)
    error = Internal("Broken.", hint="Mend it.")
    failed = decide.end_job_badly(running, error, StageKind.BOOTING, 4)
    assert failed.failure is not None
    assert failed.failure.message == "Broken. Mend it."
    cancelled = decide.end_job_badly(decide.cancel_job(running, 3), error, None, 4)
    assert (cancelled.state, cancelled.failure) == (JobState.CANCELLED, None)
    for ended in (done, failed, cancelled):
        assert decide.complete_job(ended, JobResult(), 9) is ended
        assert decide.end_job_badly(ended, error, None, 9) is ended
        assert decide.cancel_job(ended, 9) is ended
        assert decide.begin_job(ended, 9) is ended
    with pytest.raises(FailedPrecondition):
        decide.cancel_job(job(JobKind.DELETE_DEPLOYMENT), 3)


def test_the_port_is_asked_for_or_exposed_or_the_default() -> None:
    spec = DeploymentSpec(image="web")
    assert decide.port_of(replace(spec, port=9), ["80/tcp"]) == 9
    assert decide.port_of(spec, ["53/udp", "x/tcp", "0/tcp", "99999/tcp", "8081/tcp"]) == 8081
    assert decide.port_of(spec, ["3000"]) == 3000
    assert decide.port_of(spec, []) == 8080


def test_command_lines_follow_containers() -> None:
    spec = DeploymentSpec(image="web")
    image = (["/app"], ["serve"])
    assert decide.argv_of(spec, *image) == ()
    assert decide.argv_of(replace(spec, args=("x",)), *image) == ("/app", "x")
    assert decide.argv_of(replace(spec, entrypoint=("/sh",)), *image) == ("/sh",)
    both = replace(spec, entrypoint=("/sh",), args=("-c",))
    assert decide.argv_of(both, *image) == ("/sh", "-c")


def test_only_ready_replicas_of_serving_deployments_are_routed() -> None:
    unready = replace(REPLICA, state=ReplicaState.UNREADY)
    endpoint = decide.endpoint_of(DEPLOYMENT, [REPLICA, unready, replace(REPLICA, address="")])
    assert endpoint is not None
    assert endpoint.addresses == (("198.18.0.1", 80),)
    nothing = decide.endpoint_of(DEPLOYMENT, [unready])
    assert nothing is not None
    assert nothing.addresses == ()
    for state in (DeploymentState.DEPLOYING, DeploymentState.FAILED, DeploymentState.DELETING):
        assert decide.endpoint_of(replace(DEPLOYMENT, state=state), [REPLICA]) is None


def test_boot_time_is_never_negative() -> None:
    assert decide.boot_ms(REPLICA, 3 * NS_PER_SECOND) == 2000
    assert decide.boot_ms(REPLICA, 0) == 0


def test_a_slow_boot_is_told_from_an_application_that_does_not_listen() -> None:
    booting = decide.not_ready(booted=False, port=80, timeout_ms=120_000)
    assert "still booting after 120 seconds" in str(booting)
    assert "port" not in str(booting)
    deaf = decide.not_ready(booted=True, port=80, timeout_ms=1500)
    assert "on port 80 of the VM within 1.5 seconds" in str(deaf)
