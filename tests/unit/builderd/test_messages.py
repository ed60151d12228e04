from __future__ import annotations

import pytest

from ironworks.builderd.flatten.plan import Action, Rule
from ironworks.builderd.messages import (
    STATES,
    build_message,
    credential_message,
    policy_message,
    read_policy,
    report_message,
)
from ironworks.builderd.policy import Policy, digest
from ironworks.builderd.tenants import Credential
from ironworks.builderd.types import (
    Build,
    BuildState,
    PolicyLine,
    PolicyOutcome,
    PolicyReport,
    Progress,
    RootfsFormat,
)
from ironworks.gen.ironworks.builderd.v1 import policy_pb
from ironworks.model.errors import InvalidRequest

REPORT = PolicyReport(
    lines=(PolicyLine(rule="setuid_files", outcome=PolicyOutcome.CHANGED, message="x"),),
    policy_digest="d",
)


def test_a_policy_is_the_same_there_and_back() -> None:
    policy = Policy(
        allowed_sources=("ghcr.io",),
        digest_required=True,
        max_file_count=5,
        actions=dict.fromkeys(Rule, Action.STRIP),
        required_labels={"team": "x"},
    )
    assert digest(read_policy(policy_message(policy))) == digest(policy)
    assert digest(read_policy(policy_pb.Policy())) == digest(Policy())
    with pytest.raises(InvalidRequest, match="missing"):
        read_policy(None)


def test_every_state_and_outcome_has_its_message() -> None:
    assert set(STATES) == set(BuildState)
    for outcome in PolicyOutcome:
        line = PolicyLine(rule="x", outcome=outcome, message="")
        made = report_message(PolicyReport(lines=(line,), policy_digest=""))
        assert made.outcome.name == outcome.name


def test_a_build_carries_its_report() -> None:
    build = Build(
        build_id="bld_1",
        tenant_id="tnt_a",
        image="app",
        format=RootfsFormat.EXT4,
        state=BuildState.PULLING,
        created_at_ns=1,
        updated_at_ns=1,
        timeout_seconds=1,
        policy_report=REPORT,
    )
    made = build_message(build, Progress(step="x", done_bytes=1, total_bytes=2))
    assert made.policy_report == report_message(REPORT)
    assert made.progress is not None
    assert (made.progress.done_bytes, made.progress.total_bytes) == (1, 2)


def test_a_credential_goes_out_without_its_password() -> None:
    credential = Credential(
        tenant_id="tnt_a", scope="ghcr.io", username="bot", secret="c1pher", updated_at_ns=1
    )
    assert "c1pher" not in str(credential_message(credential))
