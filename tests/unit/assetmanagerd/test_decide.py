from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.assetmanagerd import decide
from ironworks.assetmanagerd.decide import TRANSITIONS, Event, judge, next_state
from ironworks.assetmanagerd.types import (
    Asset,
    AssetEvent,
    AssetFormat,
    AssetKind,
    AssetState,
    Facts,
    Rule,
    Who,
)
from ironworks.model.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from ironworks.model.units import NS_PER_SECOND
from ironworks.testkit.assets import ACME, EVIL, PLATFORM, facts

S, E = AssetState, Event
ASSET = Asset(
    asset_id="ast_1",
    tenant_id="tnt_acme",
    kind=AssetKind.ROOTFS,
    format=AssetFormat.SQUASHFS,
    state=S.AVAILABLE,
    size_bytes=10,
    sha256="0" * 64,
    created_at_ns=1000 * NS_PER_SECOND,
    updated_at_ns=1000 * NS_PER_SECOND,
)
PERSON = Who(actor="key_2", tenant_id="tnt_acme")
OPERATOR = Who(actor="key_1", sees_all=True)


@given(state=st.sampled_from(AssetState), event=st.sampled_from(Event))
def test_what_is_not_drawn_is_refused_with_a_reason(state: AssetState, event: Event) -> None:
    asset = replace(ASSET, state=state)
    if (state, event) in TRANSITIONS:
        assert next_state(asset, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(FailedPrecondition, match=state.value):
            next_state(asset, event)


def test_nothing_leads_from_in_use_to_gone_and_nothing_from_deleted() -> None:
    assert {to for (state, _), to in TRANSITIONS.items() if state is S.IN_USE} == {
        S.IN_USE,
        S.AVAILABLE,
    }
    assert all(state is not S.DELETED for state, _ in TRANSITIONS)


@pytest.mark.parametrize(
    ("who", "tenant_id", "sees", "owns"),
    [
        (ACME, "tnt_acme", True, True),
        (ACME, "", True, False),
        (EVIL, "tnt_acme", False, False),
        (PLATFORM, "tnt_acme", False, False),
        (PLATFORM, "", True, True),
        (OPERATOR, "tnt_acme", True, True),
    ],
)
def test_who_sees_and_owns_what(who: Who, tenant_id: str, *, sees: bool, owns: bool) -> None:
    asset = replace(ASSET, tenant_id=tenant_id)
    assert (decide.sees(who, asset), decide.owns(who, asset)) == (sees, owns)


@pytest.mark.parametrize(
    ("who", "tenant_id", "told"),
    [
        (PERSON, "tnt_acme", True),
        (PERSON, "", False),
        (ACME, "", True),
        (OPERATOR, "", True),
    ],
)
def test_who_is_told_of_the_use_of_what(who: Who, tenant_id: str, *, told: bool) -> None:
    used = replace(ASSET, tenant_id=tenant_id, state=S.IN_USE, lease_count=7, revision=9)
    used = replace(used, last_used_at_ns=5, updated_at_ns=5 + ASSET.created_at_ns)
    quiet = replace(ASSET, tenant_id=tenant_id, revision=0)
    assert decide.shown(who, used) == (used if told else quiet)
    for before, after, is_use in (
        (S.AVAILABLE, S.IN_USE, True),
        (S.IN_USE, S.AVAILABLE, True),
        (S.REGISTERED, S.AVAILABLE, False),
        (None, S.REGISTERED, False),
    ):
        event = AssetEvent(
            asset_id="ast_1",
            sequence=1,
            at_ns=1,
            from_state=before,
            to_state=after,
            reason="",
            actor="",
        )
        assert decide.tells(who, event, used) == (told or not is_use)


def test_changing_what_is_not_yours() -> None:
    with pytest.raises(NotFound):
        decide.check_owned(EVIL, ASSET, "ast_1")
    with pytest.raises(NotFound):
        decide.check_owned(EVIL, None, "ast_1")
    with pytest.raises(PermissionDenied):
        decide.check_owned(ACME, replace(ASSET, tenant_id=""), "ast_1")


def test_only_the_platform_registers_for_everyone() -> None:
    claim = replace(facts(b"x"), platform=True)
    assert decide.owner_of(PLATFORM, claim) == ""
    assert decide.owner_of(OPERATOR, claim) == ""
    with pytest.raises(PermissionDenied):
        decide.owner_of(ACME, claim)
    assert decide.owner_of(ACME, facts(b"x")) == "tnt_acme"
    with pytest.raises(PermissionDenied):
        decide.owner_of(PLATFORM, facts(b"x"))


@pytest.mark.parametrize(
    "claim",
    [
        replace(facts(b"x"), sha256="ABC"),
        replace(facts(b"x"), size_bytes=0),
        replace(facts(b"x"), size_bytes=2**40),
        replace(facts(b"x"), format=AssetFormat.BZIMAGE),
        replace(facts(b"x"), media_type="x" * 129),
        replace(facts(b"x"), source_digest="x" * 257),
        replace(facts(b"x"), labels={str(n): "" for n in range(65)}),
        replace(facts(b"x"), labels={"": "x"}),
        replace(facts(b"x"), labels={"x": "y" * 129}),
    ],
)
def test_facts_out_of_bounds(claim: Facts) -> None:
    with pytest.raises(InvalidRequest):
        decide.check_facts(claim, 2**36)


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a\0b", "x" * 129, "ü", "a b"])
def test_file_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        decide.check_file_name(name, "name")


def test_leases_are_bounded() -> None:
    decide.check_lease_request(("ast_a", "ast_b"), "vm_1", "")
    for ids, holder, purpose in (
        ((), "vm", ""),
        (("ast_a", "ast_a"), "vm", ""),
        (tuple(f"ast_{n}" for n in range(17)), "vm", ""),
        (("ast_a",), "", ""),
        (("ast_a",), "x" * 129, ""),
        (("ast_a",), "vm", "x" * 257),
    ):
        with pytest.raises(InvalidRequest):
            decide.check_lease_request(ids, holder, purpose)
    assert decide.lease_seconds(0, 60) == 60
    for seconds in (-1, 3601):
        with pytest.raises(InvalidRequest):
            decide.lease_seconds(seconds, 60)
    with pytest.raises(FailedPrecondition, match="damaged"):
        decide.acquired(replace(ASSET, damage="rotten"), 0)


def verdict(asset: Asset, age_seconds: int, *, needed: bool = False) -> bool:
    rule = Rule(
        now_ns=(1000 + age_seconds) * NS_PER_SECOND,
        ttl_seconds=100,
        failed_ttl_seconds=10,
        needed=frozenset({asset.asset_id} if needed else ()),
    )
    return judge(asset, rule).collected


def test_what_is_garbage() -> None:
    assert not verdict(ASSET, 99)
    assert verdict(ASSET, 100)
    assert not verdict(ASSET, 100, needed=True)
    used = replace(ASSET, last_used_at_ns=1050 * NS_PER_SECOND)
    assert not verdict(used, 149)
    assert verdict(used, 150)
    assert not verdict(replace(ASSET, lease_count=1), 10_000)
    assert not verdict(replace(ASSET, state=S.ARCHIVED), 10_000)
    assert not verdict(replace(ASSET, state=S.REGISTERED), 10_000)
    failed = replace(ASSET, state=S.FAILED)
    assert not verdict(failed, 9)
    assert verdict(failed, 10)


@given(
    state=st.sampled_from(AssetState),
    leases=st.integers(0, 3),
    age=st.integers(0, 500),
    needed=st.booleans(),
)
def test_garbage_collection_never_takes_what_is_leased(
    state: AssetState, leases: int, age: int, *, needed: bool
) -> None:
    asset = replace(ASSET, state=state, lease_count=leases)
    if verdict(asset, age, needed=needed):
        assert state is S.FAILED or (state is S.AVAILABLE and leases == 0)
        assert (state, E.COLLECTED) in TRANSITIONS
