"""Policies: which images may become root file systems, and what is changed in them on the way."""

from __future__ import annotations

from ironworks.gen.ironworks.builderd.v1 import policy_pb
from ironworks.gen.ironworks.builderd.v1.build_connect import BuildServiceClient
from ironworks.sdk.resource import Resource

EVALUATE_TIMEOUT_SECONDS = 600.0


class Policies(Resource):
    """The tenant's policy, and the platform's that it narrows."""

    async def get(self, *, platform: bool = False) -> policy_pb.GetPolicyResponse:
        """A policy as declared, what is in force, and its revision.

        Args:
            platform: The platform's; otherwise the tenant's own.
        """
        request = policy_pb.GetPolicyRequest(platform=platform)
        return await self._connection.call(
            BuildServiceClient, BuildServiceClient.get_policy, request
        )

    async def set(
        self,
        policy: policy_pb.Policy,
        *,
        expected_revision: int,
        platform: bool = False,
        idempotency_key: str = "",
    ) -> int:
        """Replace a policy; answers its revision.

        Args:
            policy: The new one.
            expected_revision: The one that it replaces, as `get` answered; 0: the first.
            platform: The platform's, for operators; otherwise the tenant's own.
            idempotency_key: Made if empty.

        Raises:
            Aborted: another revision is in force.
        """
        request = policy_pb.SetPolicyRequest(
            policy=policy,
            expected_revision=expected_revision,
            platform=platform,
            idempotency_key=idempotency_key,
        )
        answer = await self._connection.call(
            BuildServiceClient, BuildServiceClient.set_policy, request
        )
        return answer.revision

    async def evaluate(
        self, image: str, *, policy: policy_pb.Policy | None = None
    ) -> policy_pb.EvaluatePolicyResponse:
        """Try a policy on an image; nothing is built.

        Args:
            image: As for a build.
            policy: The one to try; None: the one in force.
        """
        request = policy_pb.EvaluatePolicyRequest(image=image, policy=policy)
        return await self._connection.call(
            BuildServiceClient,
            BuildServiceClient.evaluate_policy,
            request,
            EVALUATE_TIMEOUT_SECONDS,
        )
