"""Policies in builds and in trials, on real images in the real sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ironworks.builderd.flatten.plan import Action, Rule
from ironworks.builderd.policy import RULES, Policy
from ironworks.builderd.types import BuildState, PolicyOutcome, PolicyReport
from ironworks.model.errors import InvalidRequest
from ironworks.testkit.builds import TENANT, BuildWorld, build_world
from ironworks.testkit.images import File

KEY = b"-----BEGIN RSA PRIVATE KEY-----\n" + b"A" * 200
PASSWD = b"root:x:0:0::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\napp:x:7:7::/:/bin/sh\n"
SETUID = File(name="su", data=b"x", mode=0o4755)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[BuildWorld]:
    async with build_world(tmp_path) as made:
        yield made


async def set_policy(world: BuildWorld, policy: Policy) -> None:
    _, _, revision = await world.choices.policy(TENANT, platform=False)
    await world.choices.set_policy(TENANT, policy, revision, "", platform=False)


def line(report: PolicyReport | None, rule: str) -> PolicyOutcome:
    assert report is not None
    assert [one.rule for one in report.lines] == list(RULES)
    return next(one.outcome for one in report.lines if one.rule == rule)


async def test_what_is_stripped_is_said_and_makes_another_asset(world: BuildWorld) -> None:
    reference = world.image("app", b"x", SETUID)
    plain = await world.build(reference)
    assert plain.policy_report is not None
    assert plain.policy_report.outcome is PolicyOutcome.PASSED
    await set_policy(world, Policy(actions={Rule.SETUID_FILES: Action.STRIP}))
    stripped = await world.build(reference)
    assert line(stripped.policy_report, "setuid_files") is PolicyOutcome.CHANGED
    assert stripped.result is not None
    assert plain.result is not None
    assert stripped.result.sha256 != plain.result.sha256
    assert any("setuid" in line.text for line in await world.log(stripped))
    again = await world.build(reference)
    assert again.reused_build_id == stripped.build_id
    assert again.policy_report == stripped.policy_report


async def test_what_is_refused_fails_with_its_line_and_nothing_is_made(world: BuildWorld) -> None:
    reference = world.image("app", b"x", File(name="key.pem", data=KEY))
    await set_policy(world, Policy(actions={Rule.PRIVATE_KEYS: Action.REFUSE}))
    build = await world.build(reference)
    assert build.failure is not None
    assert build.failure.code == "permission_denied"
    assert "private_keys: 1 private keys are refused" in build.failure.message
    assert line(build.policy_report, "private_keys") is PolicyOutcome.REFUSED
    assert world.assets.usable == set()


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (Policy(allowed_sources=("ghcr.io",)), "allowed_sources"),
        (Policy(non_root_required=True), "non_root_required"),
        (Policy(required_labels={"team": ""}), "required_labels"),
        (Policy(max_packed_bytes=1), "max_packed_bytes"),
        (Policy(max_unpacked_bytes=1), "max_unpacked_bytes"),
        (Policy(max_path_bytes=2), "max_path_bytes"),
        (Policy(max_file_count=1), "max_file_count"),
    ],
)
async def test_each_limit_refuses_a_build_and_a_trial(
    world: BuildWorld, policy: Policy, rule: str
) -> None:
    reference = world.image("app", b"x", File(name="more", data=b"y"))
    report, _ = await world.choices.evaluate(TENANT, reference, policy)
    assert line(report, rule) is PolicyOutcome.REFUSED
    await set_policy(world, policy)
    build = await world.build(reference)
    assert build.state is BuildState.FAILED
    assert line(build.policy_report, rule) is PolicyOutcome.REFUSED


async def test_a_trial_says_all_and_builds_nothing(world: BuildWorld) -> None:
    passwd = File(name="etc/passwd", data=PASSWD)
    key = File(name="key.pem", data=KEY)
    reference = world.image("app", b"x", SETUID, key, passwd, User="app")
    policy = Policy(
        actions={Rule.SETUID_FILES: Action.REFUSE, Rule.PRIVATE_KEYS: Action.STRIP},
        non_root_required=True,
    )
    report, digest = await world.choices.evaluate(TENANT, reference, policy)
    assert digest.startswith("sha256:")
    assert line(report, "setuid_files") is PolicyOutcome.REFUSED
    assert line(report, "private_keys") is PolicyOutcome.CHANGED
    assert line(report, "non_root_required") is PolicyOutcome.PASSED
    assert not [one for one in report.lines if one.outcome is PolicyOutcome.NOT_EVALUATED]
    in_force, _ = await world.choices.evaluate(TENANT, reference, None)
    assert in_force.outcome is PolicyOutcome.PASSED
    assert world.assets.usable == set()
    assert list(world.worker.scratch_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("user", "said"), [("toor", "is user 0"), ("absent", "is nobody"), ("0:9", "runs as root")]
)
async def test_who_is_root_is_looked_up_in_the_image(
    world: BuildWorld, user: str, said: str
) -> None:
    reference = world.image("app", b"x", File(name="etc/passwd", data=PASSWD), User=user)
    policy = Policy(non_root_required=True)
    report, _ = await world.choices.evaluate(TENANT, reference, policy)
    assert line(report, "non_root_required") is PolicyOutcome.REFUSED
    await set_policy(world, policy)
    build = await world.build(reference)
    assert build.failure is not None
    assert said in build.failure.message
    assert world.assets.usable == set()


async def test_what_was_not_looked_at_is_said(world: BuildWorld) -> None:
    policy = Policy(allowed_sources=("ghcr.io",))
    report, digest = await world.choices.evaluate(TENANT, world.image(), policy)
    assert digest == ""
    assert line(report, "setuid_files") is PolicyOutcome.NOT_EVALUATED


async def test_a_trial_of_no_image_is_refused(world: BuildWorld) -> None:
    (world.settings.data_dir / "images" / "junk").mkdir()
    with pytest.raises(InvalidRequest, match="not an OCI layout"):
        await world.choices.evaluate(TENANT, f"{world.settings.data_dir}/images/junk", None)
    assert list(world.worker.scratch_dir.iterdir()) == []
