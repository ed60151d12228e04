"""Invoices: usage with prices."""

from __future__ import annotations

from collections.abc import Sequence

from ironworks.gen.ironworks.aggregatord.v1 import invoice_pb, usage_pb
from ironworks.gen.ironworks.aggregatord.v1.invoice_connect import InvoiceServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.sdk.resource import DEFAULT_LIMIT, Page, Resource, walk


class Invoices(Resource):
    """Invoices of the caller's tenant or, for operators, of any."""

    async def preview(
        self,
        *,
        from_ns: int,
        to_ns: int,
        tenant_id: str = "",
        by_vm: bool = False,
        vm_ids: Sequence[str] = (),
    ) -> invoice_pb.Invoice:
        """A draft for `[from_ns, to_ns)`, UTC nanoseconds; nothing is stored."""
        request = invoice_pb.PreviewInvoiceRequest(
            tenant_id=tenant_id,
            interval=usage_pb.Interval(from_ns=from_ns, to_ns=to_ns),
            by_vm=by_vm,
            vm_ids=[*vm_ids],
        )
        return await self._connection.call(
            InvoiceServiceClient, InvoiceServiceClient.preview_invoice, request
        )

    async def get(self, invoice_id: str) -> invoice_pb.Invoice:
        """One invoice, with its lines."""
        request = invoice_pb.GetInvoiceRequest(invoice_id=invoice_id)
        return await self._connection.call(
            InvoiceServiceClient, InvoiceServiceClient.get_invoice, request
        )

    async def list(
        self, *, tenant_id: str = "", limit: int = DEFAULT_LIMIT, page_token: str = ""
    ) -> Page[invoice_pb.Invoice]:
        """Invoices, newest first, without lines."""

        async def ask(page: common_pb.PageRequest) -> invoice_pb.ListInvoicesResponse:
            request = invoice_pb.ListInvoicesRequest(tenant_id=tenant_id, page=page)
            return await self._connection.call(
                InvoiceServiceClient, InvoiceServiceClient.list_invoices, request
            )

        return await walk(ask, lambda a: a.invoices, limit=limit, page_token=page_token)
