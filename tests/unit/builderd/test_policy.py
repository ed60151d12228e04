from __future__ import annotations

from dataclasses import replace

import pytest

from ironworks.builderd import policy as policies
from ironworks.builderd.decide import parse_image, with_registry
from ironworks.builderd.flatten.plan import Action, Finding, Rule
from ironworks.builderd.policy import NOWHERE, Policy
from ironworks.builderd.types import (
    Descriptor,
    ImageConfig,
    ImageReference,
    Manifest,
    PolicyLine,
    PolicyOutcome,
)
from ironworks.model.errors import InvalidRequest

DIGEST = "sha256:" + "a" * 64
PASSED, CHANGED, REFUSED = PolicyOutcome.PASSED, PolicyOutcome.CHANGED, PolicyOutcome.REFUSED


def named(image: str) -> ImageReference:
    return with_registry(parse_image(image), "docker.io")


def outcome(lines: list[PolicyLine], rule: str) -> PolicyOutcome:
    return next(line.outcome for line in lines if line.rule == rule)


@pytest.mark.parametrize(
    ("image", "allowed", "found"),
    [
        ("alpine", ["docker.io/library"], PASSED),
        ("alpine", ["docker.io/library/alpine"], PASSED),
        ("docker.io/library/alpine-evil", ["docker.io/library/alpine"], REFUSED),
        ("ghcr.io/acme/app@" + DIGEST, ["ghcr.io/acme"], PASSED),
        ("ghcr.io/acmeevil/app", ["ghcr.io/acme"], REFUSED),
        ("localhost:5000/app:1", ["localhost:5000"], PASSED),
        ("ghcr.io/acme/app", ["local", "upload"], REFUSED),
        ("oci:/srv/app", ["local"], PASSED),
        ("oci:/srv/app", ["docker.io"], REFUSED),
        ("upload:upl_" + "a" * 26, ["upload"], PASSED),
        ("upload:upl_" + "a" * 26, ["local"], REFUSED),
        ("anything", [], PASSED),
    ],
)
def test_sources(image: str, allowed: list[str], found: PolicyOutcome) -> None:
    lines = policies.judge_reference(Policy(allowed_sources=tuple(allowed)), named(image))
    assert outcome(lines, "allowed_sources") is found


@pytest.mark.parametrize(
    ("image", "found"),
    [("app:1", REFUSED), ("app:1@" + DIGEST, PASSED), ("oci:/srv/app", PASSED)],
)
def test_a_digest_can_be_required(image: str, found: PolicyOutcome) -> None:
    lines = policies.judge_reference(Policy(digest_required=True), named(image))
    assert outcome(lines, "digest_required") is found


def test_what_the_manifest_tells() -> None:
    layer = Descriptor(media_type="", digest=DIGEST, size_bytes=1000)
    manifest = Manifest(config=replace(layer, size_bytes=24), layers=(layer, layer))
    exact = Policy(max_packed_bytes=2024, max_layer_count=2)
    assert {line.outcome for line in policies.judge_manifest(exact, manifest)} == {PASSED}
    below = Policy(max_packed_bytes=2023, max_layer_count=1)
    lines = policies.judge_manifest(below, manifest)
    assert {line.outcome for line in lines} == {REFUSED}
    assert "at most 1 are allowed" in lines[1].message


@pytest.mark.parametrize("user", ["", "root", "0", "00", "root:app", "0:0", ":app"])
def test_root_has_many_names(user: str) -> None:
    lines = policies.judge_config(Policy(non_root_required=True), ImageConfig(user=user))
    assert outcome(lines, "non_root_required") is REFUSED
    lines = policies.judge_config(Policy(), ImageConfig(user=user))
    assert outcome(lines, "non_root_required") is PASSED


def test_another_user_passes() -> None:
    for user in ("app", "1000", "1000:0"):
        lines = policies.judge_config(Policy(non_root_required=True), ImageConfig(user=user))
        assert outcome(lines, "non_root_required") is PASSED


def test_labels_are_required_with_and_without_a_value() -> None:
    policy = Policy(required_labels={"team": "", "tier": "gold"})
    for labels, found in (
        ({"team": "web", "tier": "gold"}, PASSED),
        ({"team": "", "tier": "gold"}, PASSED),
        ({"team": "web", "tier": "tin"}, REFUSED),
        ({"tier": "gold"}, REFUSED),
    ):
        lines = policies.judge_config(policy, ImageConfig(labels=labels))
        assert outcome(lines, "required_labels") is found


def test_files_are_reported_line_by_line() -> None:
    policy = Policy(actions={Rule.SETUID_FILES: Action.STRIP, Rule.PRIVATE_KEYS: Action.REFUSE})
    paths = tuple(f"/bin/{n}" for n in range(5))
    findings = [
        Finding(rule=Rule.SETUID_FILES, action=Action.STRIP, paths=paths, path_count=7),
        Finding(rule=Rule.PRIVATE_KEYS, action=Action.REFUSE, paths=("/key",), path_count=1),
    ]
    lines = policies.judge_tree(policy, findings, 10, 3)
    assert outcome(lines, "setuid_files") is CHANGED
    assert outcome(lines, "private_keys") is REFUSED
    assert outcome(lines, "device_nodes") is PASSED
    report = policies.report(policy, lines, "Not reached.")
    assert [line.rule for line in report.lines] == list(policies.RULES)
    assert report.outcome is REFUSED
    assert report.lines[0].outcome is PolicyOutcome.NOT_EVALUATED
    refusal = policies.refusal(lines)
    assert refusal is not None
    assert "private_keys: 1 private keys are refused: /key." in refusal.message
    assert policies.refusal(lines[:3]) is None


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        ("The image unpacks to more than 5 bytes.", "max_unpacked_bytes"),
        ("The image has more than 5 files.", "max_file_count"),
        ("A layer of the image is refused: its name is longer than 5 bytes.", "max_path_bytes"),
    ],
)
def test_a_limit_that_flattening_met_is_a_line(message: str, rule: str) -> None:
    (line,) = policies.judge_refusal(InvalidRequest(message))
    assert (line.rule, line.outcome) == (rule, REFUSED)
    assert policies.judge_refusal(InvalidRequest("The layer is damaged.")) == []


@pytest.mark.parametrize(
    "policy",
    [
        Policy(allowed_sources=("",)),
        Policy(allowed_sources=("ghcr.io/acme/",)),
        Policy(allowed_sources=("ghcr.io acme",)),
        Policy(allowed_sources=tuple(f"r{n}" for n in range(257))),
        Policy(max_file_count=-1),
        Policy(required_labels={"": "x"}),
        Policy(required_labels={"x": "y" * 300}),
    ],
)
def test_what_is_no_policy(policy: Policy) -> None:
    with pytest.raises(InvalidRequest):
        policies.check(policy)


def test_nothing_in_common_is_nothing_allowed() -> None:
    policy = policies.narrow(
        Policy(allowed_sources=("ghcr.io",)), Policy(allowed_sources=("docker.io",))
    )
    assert policy.allowed_sources == (NOWHERE,)
    lines = policies.judge_reference(policy, named("ghcr.io/app"))
    assert outcome(lines, "allowed_sources") is REFUSED


def test_the_same_policy_has_one_digest() -> None:
    one = Policy(allowed_sources=("b", "a"), actions={Rule.SETUID_FILES: Action.ALLOW})
    two = Policy(allowed_sources=("a", "b", "a"))
    assert policies.digest(one) == policies.digest(two)
    assert policies.digest(one) != policies.digest(Policy())
    assert policies.decode(policies.encode(one)) == policies.decode(policies.encode(two))
