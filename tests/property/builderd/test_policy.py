"""A tenant's policy narrows the platform's: whatever either refuses, both together refuse."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ironworks.builderd import policy as policies
from ironworks.builderd.flatten.plan import Action, Rule
from ironworks.builderd.policy import Policy
from ironworks.builderd.types import (
    Descriptor,
    ImageConfig,
    ImageReference,
    Manifest,
    PolicyOutcome,
    Transport,
)

SOURCES = ("ghcr.io", "ghcr.io/acme", "ghcr.io/acme/app", "docker.io", "local", "upload")
POLICIES = st.builds(
    Policy,
    allowed_sources=st.lists(st.sampled_from(SOURCES), max_size=3).map(tuple),
    digest_required=st.booleans(),
    max_packed_bytes=st.integers(0, 5),
    max_unpacked_bytes=st.integers(0, 5),
    max_file_count=st.integers(0, 5),
    max_layer_count=st.integers(0, 3),
    max_path_bytes=st.integers(0, 5),
    actions=st.dictionaries(st.sampled_from(Rule), st.sampled_from(Action)),
    non_root_required=st.booleans(),
    required_labels=st.dictionaries(st.sampled_from("ab"), st.just("")),
)
REFERENCES = st.builds(
    ImageReference,
    transport=st.sampled_from([Transport.REGISTRY, Transport.LAYOUT, Transport.UPLOAD]),
    location=st.sampled_from(["ghcr.io/acme/app:1", "docker.io/x", "ghcr.io/acme/app@sha256:0"]),
)
MANIFESTS = st.lists(st.integers(0, 3), max_size=4).map(
    lambda sizes: Manifest(
        config=Descriptor(media_type="", digest="", size_bytes=0),
        layers=tuple(Descriptor(media_type="", digest="", size_bytes=size) for size in sizes),
    )
)
CONFIGS = st.builds(
    ImageConfig,
    user=st.sampled_from(["", "0", "app"]),
    labels=st.dictionaries(st.sampled_from("ab"), st.just("x")),
)


def refused(
    policy: Policy, reference: ImageReference, manifest: Manifest, config: ImageConfig
) -> set[str]:
    lines = [
        *policies.judge_reference(policy, reference),
        *policies.judge_manifest(policy, manifest),
        *policies.judge_config(policy, config),
    ]
    return {line.rule for line in lines if line.outcome is PolicyOutcome.REFUSED}


@given(POLICIES, POLICIES, REFERENCES, MANIFESTS, CONFIGS)
def test_narrowing_refuses_what_either_refuses_and_nothing_else(
    platform: Policy,
    tenant: Policy,
    reference: ImageReference,
    manifest: Manifest,
    config: ImageConfig,
) -> None:
    both = policies.narrow(platform, tenant)
    image = reference, manifest, config
    assert refused(both, *image) == refused(platform, *image) | refused(tenant, *image)


@given(POLICIES, POLICIES)
def test_narrowing_is_never_laxer_about_files_and_limits(platform: Policy, tenant: Policy) -> None:
    both = policies.narrow(platform, tenant)
    order = list(Action)
    for rule in Rule:
        found = order.index(both.actions[rule])
        assert found >= order.index(platform.actions.get(rule, Action.ALLOW))
        assert found >= order.index(tenant.actions.get(rule, Action.ALLOW))
    for one in (platform, tenant):
        for name in ("max_unpacked_bytes", "max_file_count", "max_path_bytes"):
            if getattr(one, name):
                assert 0 < getattr(both, name) <= getattr(one, name)


@given(POLICIES)
def test_what_is_stored_comes_back_and_narrowing_by_itself_changes_nothing(policy: Policy) -> None:
    policies.check(policy)
    assert policies.digest(policies.decode(policies.encode(policy))) == policies.digest(policy)
    assert policies.digest(policies.narrow(policy, policy)) == policies.digest(policy)
    assert policies.digest(policies.narrow(policy, Policy())) == policies.digest(policy)
