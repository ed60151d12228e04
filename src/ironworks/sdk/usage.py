"""Usage: what was consumed, and how complete that knowledge is."""

from __future__ import annotations

from collections.abc import Sequence

from ironworks.gen.ironworks.aggregatord.v1 import usage_pb
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageServiceClient
from ironworks.sdk.resource import Resource


class Usage(Resource):
    """Usage of the caller's tenant or, for operators, of any."""

    async def get(
        self,
        *,
        from_ns: int,
        to_ns: int,
        step: usage_pb.Step = usage_pb.Step.UNSPECIFIED,
        by_vm: bool = False,
        tenant_id: str = "",
        vm_ids: Sequence[str] = (),
        deployment_id: str = "",
        meters: Sequence[usage_pb.Meter] = (),
    ) -> usage_pb.GetUsageResponse:
        """Exact sums of meters over `[from_ns, to_ns)`, UTC nanoseconds, whole or in steps."""
        request = usage_pb.GetUsageRequest(
            filter=usage_pb.UsageFilter(
                tenant_id=tenant_id,
                vm_ids=[*vm_ids],
                deployment_id=deployment_id,
                meters=[*meters],
            ),
            interval=usage_pb.Interval(from_ns=from_ns, to_ns=to_ns),
            step=step,
            by_vm=by_vm,
        )
        return await self._connection.call(
            UsageServiceClient, UsageServiceClient.get_usage, request
        )

    async def completeness(
        self,
        *,
        from_ns: int,
        to_ns: int,
        tenant_id: str = "",
        vm_ids: Sequence[str] = (),
        deployment_id: str = "",
    ) -> usage_pb.GetCompletenessResponse:
        """Samples expected, received and missing, with the reasons, in total and for each VM."""
        request = usage_pb.GetCompletenessRequest(
            filter=usage_pb.UsageFilter(
                tenant_id=tenant_id, vm_ids=[*vm_ids], deployment_id=deployment_id
            ),
            interval=usage_pb.Interval(from_ns=from_ns, to_ns=to_ns),
        )
        return await self._connection.call(
            UsageServiceClient, UsageServiceClient.get_completeness, request
        )
