from __future__ import annotations

from ironworks.gen.ironworks.builderd.v1 import policy_pb
from ironworks.sdk import AsyncIronworks
from ironworks.testkit.fakebuilds import REFUSED_IMAGE


async def test_a_policy_is_read_and_replaced(client: AsyncIronworks) -> None:
    assert (await client.policies.get()).revision == 0
    policy = policy_pb.Policy(digest_required=True)
    assert await client.policies.set(policy, expected_revision=0) == 1
    found = await client.policies.get()
    assert (found.policy, found.revision) == (policy, 1)
    assert (await client.policies.get(platform=True)).revision == 0


async def test_a_policy_is_tried(client: AsyncIronworks) -> None:
    found = await client.policies.evaluate(REFUSED_IMAGE)
    assert found.report is not None
    assert found.report.outcome is policy_pb.PolicyOutcome.REFUSED
