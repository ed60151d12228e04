"""Usage: what was consumed, and how complete that knowledge is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from ironworks.gen.ironworks.aggregatord.v1 import batch_pb, usage_pb
from ironworks.gen.ironworks.aggregatord.v1.batch_connect import BatchServiceClient
from ironworks.gen.ironworks.aggregatord.v1.usage_connect import UsageServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, walk


def _chosen(
    tenant_id: str,
    vm_ids: Sequence[str],
    deployment_id: str,
    meters: Sequence[usage_pb.Meter] = (),
) -> usage_pb.UsageFilter:
    return usage_pb.UsageFilter(
        tenant_id=tenant_id, vm_ids=[*vm_ids], deployment_id=deployment_id, meters=[*meters]
    )


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
            filter=_chosen(tenant_id, vm_ids, deployment_id, meters),
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
            filter=_chosen(tenant_id, vm_ids, deployment_id),
            interval=usage_pb.Interval(from_ns=from_ns, to_ns=to_ns),
        )
        return await self._connection.call(
            UsageServiceClient, UsageServiceClient.get_completeness, request
        )

    async def gaps(
        self,
        *,
        from_ns: int,
        to_ns: int,
        tenant_id: str = "",
        vm_ids: Sequence[str] = (),
        deployment_id: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> usage_pb.ListGapsResponse:
        """One page of missing intervals with their reasons, by VM and number."""
        request = usage_pb.ListGapsRequest(
            filter=_chosen(tenant_id, vm_ids, deployment_id),
            interval=usage_pb.Interval(from_ns=from_ns, to_ns=to_ns),
            page=common_pb.PageRequest(page_size=page_size, page_token=page_token),
        )
        return await self._connection.call(
            UsageServiceClient, UsageServiceClient.list_gaps, request
        )

    async def adjustments(
        self,
        *,
        from_ns: int,
        to_ns: int,
        tenant_id: str = "",
        vm_ids: Sequence[str] = (),
        deployment_id: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> usage_pb.ListAdjustmentsResponse:
        """One page of what arrived after its day was settled."""
        request = usage_pb.ListAdjustmentsRequest(
            filter=_chosen(tenant_id, vm_ids, deployment_id),
            interval=usage_pb.Interval(from_ns=from_ns, to_ns=to_ns),
            page=common_pb.PageRequest(page_size=page_size, page_token=page_token),
        )
        return await self._connection.call(
            UsageServiceClient, UsageServiceClient.list_adjustments, request
        )

    async def recompute(
        self, *, from_ns: int, to_ns: int, tenant_id: str = "", idempotency_key: str = ""
    ) -> usage_pb.RecomputeUsageResponse:
        """Compute hours and days of whole UTC days anew from what is kept; for operators."""
        request = usage_pb.RecomputeUsageRequest(
            tenant_id=tenant_id,
            interval=usage_pb.Interval(from_ns=from_ns, to_ns=to_ns),
            idempotency_key=idempotency_key,
        )
        return await self._connection.call(
            UsageServiceClient, UsageServiceClient.recompute_usage, request
        )

    async def quarantined(
        self,
        *,
        tenant_id: str = "",
        vm_id: str = "",
        state: batch_pb.QuarantineState = batch_pb.QuarantineState.UNSPECIFIED,
        limit: int = DEFAULT_LIMIT,
        page_token: str = "",
    ) -> Page[batch_pb.QuarantinedWindow]:
        """Windows that failed validation, newest first; for operators."""

        async def ask(page: common_pb.PageRequest) -> batch_pb.ListQuarantinedWindowsResponse:
            return await self._connection.call(
                BatchServiceClient,
                BatchServiceClient.list_quarantined_windows,
                batch_pb.ListQuarantinedWindowsRequest(
                    tenant_id=tenant_id, vm_id=vm_id, state=state, page=page
                ),
            )

        return await walk(ask, lambda answer: answer.windows, limit=limit, page_token=page_token)

    async def resolve(
        self,
        window_id: str,
        state: batch_pb.QuarantineState,
        *,
        note: str,
        content_sha256: bytes = b"",
        idempotency_key: str = "",
    ) -> batch_pb.QuarantinedWindow:
        """Release (store and bill) or reject a window in quarantine; for operators.

        `content_sha256` says which one is meant where several have the id.
        """
        request = batch_pb.ResolveQuarantinedWindowRequest(
            window_id=window_id,
            content_sha256=content_sha256,
            state=state,
            note=note,
            idempotency_key=idempotency_key,
        )
        return await self._connection.call(
            BatchServiceClient, BatchServiceClient.resolve_quarantined_window, request
        )

    async def watch(
        self,
        *,
        tenant_id: str = "",
        vm_ids: Sequence[str] = (),
        deployment_id: str = "",
        meters: Sequence[usage_pb.Meter] = (),
    ) -> AsyncGenerator[usage_pb.UsageRow]:
        """Usage as it comes in, within two seconds, until the caller goes; preliminary.

        A stream that breaks raises: what was used meanwhile is in `get`.
        """
        request = usage_pb.StreamUsageRequest(
            filter=_chosen(tenant_id, vm_ids, deployment_id, meters)
        )
        news = self._connection.stream(UsageServiceClient, UsageServiceClient.stream_usage, request)
        async with aclosing(news):
            async for answer in news:
                for row in answer.rows:
                    yield row

    async def export(  # noqa: PLR0913 - the words of a question, all by name
        self,
        *,
        from_ns: int,
        to_ns: int,
        file_format: usage_pb.ExportFormat,
        step: usage_pb.Step = usage_pb.Step.UNSPECIFIED,
        by_vm: bool = False,
        tenant_id: str = "",
        vm_ids: Sequence[str] = (),
        deployment_id: str = "",
        meters: Sequence[usage_pb.Meter] = (),
    ) -> AsyncGenerator[bytes]:
        """The rows of `get` as a CSV or Parquet file, piece by piece."""
        request = usage_pb.ExportUsageRequest(
            filter=_chosen(tenant_id, vm_ids, deployment_id, meters),
            interval=usage_pb.Interval(from_ns=from_ns, to_ns=to_ns),
            step=step,
            by_vm=by_vm,
            format=file_format,
        )
        chunks = self._connection.stream(
            UsageServiceClient, UsageServiceClient.export_usage, request
        )
        async with aclosing(chunks):
            async for answer in chunks:
                yield answer.chunk
