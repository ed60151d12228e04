"""Decisions as properties: roles, names, jobs; and Envoy's gates against the access table."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ironworks.gatewayd import decide
from ironworks.gatewayd.envoy import listener
from ironworks.gatewayd.envoy.types import Edge
from ironworks.gatewayd.types import (
    JOB_ENDED,
    Job,
    JobKind,
    JobResult,
    JobState,
    StageKind,
    StageState,
    TenantLimits,
)
from ironworks.model.errors import Internal, InvalidRequest, PermissionDenied
from ironworks.model.ids import derived_id
from ironworks.runtime import access
from ironworks.runtime.identity import Caller

ROLES = ("viewer", "billing", "developer", "admin", "owner", "operator")
RANKS = {"viewer": 0, "billing": 1, "developer": 1, "admin": 2, "owner": 3, "operator": 4}
TENANTS = (derived_id("tnt", "one"), derived_id("tnt", "two"))
names = st.from_regex(re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"), fullmatch=True)
callers = st.one_of(
    st.just(Caller(kind="user", subject="op", roles=frozenset({"operator"}))),
    st.builds(
        Caller,
        kind=st.just("user"),
        subject=st.just("key"),
        tenant_id=st.sampled_from(TENANTS),
        roles=st.frozensets(st.sampled_from(ROLES[:-1]), min_size=1),
    ),
)


@given(
    caller=callers,
    tenant_id=st.sampled_from([None, *TENANTS]),
    roles=st.lists(st.sampled_from(ROLES), max_size=3),
)
def test_nobody_makes_a_credential_above_their_own(
    caller: Caller, tenant_id: str | None, roles: list[str]
) -> None:
    try:
        granted = decide.check_grant(caller, tenant_id, roles)
    except (InvalidRequest, PermissionDenied):
        return
    assert set(granted) == set(roles)
    assert granted
    assert max(RANKS[role] for role in granted) <= max(RANKS[role] for role in caller.roles)
    if not caller.is_operator:
        assert tenant_id == caller.tenant_id
    assert ("operator" in granted) == (tenant_id is None)


def table_of(rbac: dict[str, Any]) -> Callable[[str, frozenset[str]], bool]:
    """What the compiled policies say, read as Envoy reads them."""

    def allows(path: str, roles: frozenset[str]) -> bool:
        for policy in rbac["rules"]["policies"].values():
            rules = policy["permissions"][0].get("or_rules", {"rules": policy["permissions"]})
            on_path = any(
                one["url_path"]["path"].get("exact") == path
                or path.startswith(one["url_path"]["path"].get("prefix", "\0"))
                for one in rules["rules"]
            )
            principal = policy["principals"][0]
            wanted = {
                one["sourced_metadata"]["metadata_matcher"]["value"]["list_match"]["one_of"][
                    "string_match"
                ]["exact"]
                for one in principal.get("or_ids", {"ids": []})["ids"]
            }
            if on_path and (principal.get("any") or wanted & roles):
                return True
        return False

    return allows


EDGE = Edge(
    directory=Path("/x"),
    admin_socket=Path("/x/s"),
    host="127.0.0.1",
    port=1,
    domain="d",
    issuer="i",
    jwks_json="{}",
    certificate_pem="",
    private_key_pem="",
    services={},
    access=access.ACCESS,
    limits=TenantLimits(),
)
FILTERS = listener.compile_listener(EDGE, {})["filter_chains"][0]["filters"][0]["typed_config"]
ALLOWS = table_of(
    next(one["typed_config"] for one in FILTERS["http_filters"] if one["name"].endswith(".rbac"))
)


@given(
    method=st.sampled_from([*access.ACCESS, "ironworks.gatewayd.v1.JobService/Nothing"]),
    roles=st.frozensets(st.sampled_from(ROLES), max_size=3),
)
def test_envoy_and_the_services_decide_alike(method: str, roles: frozenset[str]) -> None:
    caller = Caller(kind="user", subject="key", tenant_id=TENANTS[0], roles=roles)
    try:
        access.check(method, caller)
        allowed = True
    except PermissionDenied:
        allowed = False
    assert ALLOWS(f"/{method}", roles) == allowed


@given(one=names, two=names, tenants=st.permutations(TENANTS))
def test_host_labels_are_dns_labels_that_never_meet(one: str, two: str, tenants: list[str]) -> None:
    label = decide.host_label(one, tenants[0])
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label)
    assert label != decide.host_label(one, tenants[1])
    assert (label == decide.host_label(two, tenants[0])) == (one == two)


@given(image=st.text(max_size=200))
def test_a_name_made_of_an_image_is_a_name(image: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", decide.name_of_image(image))


EVENTS: list[Callable[[Job, int], Job]] = [
    decide.begin_job,
    decide.cancel_job,
    decide.fail_stage,
    lambda job, now: decide.complete_job(job, JobResult(), now),
    lambda job, now: decide.end_job_badly(job, Internal("x"), StageKind.BOOTING, now),
    *(
        lambda job, now, kind=kind, state=state: decide.set_stage(job, kind, state, now)
        for kind in StageKind
        for state in StageState
    ),
]


@given(events=st.lists(st.sampled_from(EVENTS), max_size=30))
def test_jobs_end_once_and_their_versions_grow_with_every_change(
    events: list[Callable[[Job, int], Job]],
) -> None:
    job = Job(
        job_id=derived_id("job", "one"),
        tenant_id=TENANTS[0],
        kind=JobKind.CREATE_DEPLOYMENT,
        resource_id=derived_id("dep", "one"),
        state=JobState.QUEUED,
        stages=decide.stages_of(JobKind.CREATE_DEPLOYMENT),
        result=None,
        failure=None,
        request_id="",
        grace_ms=0,
        created_at_ns=1,
        updated_at_ns=1,
        ended_at_ns=0,
        version=1,
    )
    for now, event in enumerate(events, start=2):
        after = event(job, now)
        if after is job:
            continue
        assert after.version == job.version + 1
        assert after.updated_at_ns == now
        if job.state in JOB_ENDED:
            assert (after.state, after.result, after.failure, after.ended_at_ns) == (
                job.state,
                job.result,
                job.failure,
                job.ended_at_ns,
            )
        assert (after.state in JOB_ENDED) == bool(after.ended_at_ns)
        assert (after.result is not None) == (after.state is JobState.COMPLETED)
        assert (after.failure is not None) == (after.state is JobState.FAILED)
        kinds = [stage.kind for stage in after.stages]
        assert len(kinds) == len(set(kinds))
        for stage in after.stages:
            assert not stage.ended_at_ns or stage.started_at_ns <= stage.ended_at_ns
        job = after
