"""Who may call aggregatord."""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.runtime.access.rule import BILLING, OPERATORS, Access

_BATCHES = "ironworks.aggregatord.v1.BatchService"
_USAGE = "ironworks.aggregatord.v1.UsageService"
_PRICES = "ironworks.aggregatord.v1.PriceService"
_INVOICES = "ironworks.aggregatord.v1.InvoiceService"
_GATEWAY = frozenset({"gatewayd"})
_VIEWERS = BILLING | {"viewer"}

ACCESS: Mapping[str, Access] = {
    f"{_BATCHES}/SubmitBatch": Access(services=frozenset({"billaged"})),
    f"{_BATCHES}/ReportLive": Access(services=frozenset({"billaged"})),
    f"{_BATCHES}/GetBatch": Access(roles=OPERATORS),
    f"{_BATCHES}/ListQuarantinedWindows": Access(roles=OPERATORS),
    f"{_BATCHES}/ResolveQuarantinedWindow": Access(roles=OPERATORS),
    f"{_USAGE}/GetUsage": Access(services=_GATEWAY, roles=_VIEWERS),
    f"{_USAGE}/GetCompleteness": Access(services=_GATEWAY, roles=_VIEWERS),
    f"{_USAGE}/ListGaps": Access(services=_GATEWAY, roles=_VIEWERS),
    f"{_USAGE}/StreamUsage": Access(services=_GATEWAY, roles=_VIEWERS),
    f"{_USAGE}/ExportUsage": Access(services=_GATEWAY, roles=BILLING),
    f"{_USAGE}/ListAdjustments": Access(services=_GATEWAY, roles=BILLING),
    f"{_USAGE}/RecomputeUsage": Access(roles=OPERATORS),
    f"{_PRICES}/CreatePricePlan": Access(roles=OPERATORS),
    f"{_PRICES}/GetPricePlan": Access(services=_GATEWAY, roles=BILLING),
    f"{_PRICES}/ListPricePlans": Access(services=_GATEWAY, roles=BILLING),
    f"{_PRICES}/CreatePriceVersion": Access(roles=OPERATORS),
    f"{_PRICES}/ListPriceVersions": Access(services=_GATEWAY, roles=BILLING),
    f"{_PRICES}/ArchivePricePlan": Access(roles=OPERATORS),
    f"{_PRICES}/AssignPricePlan": Access(roles=OPERATORS),
    f"{_PRICES}/ListPriceAssignments": Access(services=_GATEWAY, roles=BILLING),
    f"{_PRICES}/PreviewPriceVersion": Access(roles=OPERATORS),
    f"{_INVOICES}/PreviewInvoice": Access(services=_GATEWAY, roles=BILLING),
    f"{_INVOICES}/GetInvoice": Access(services=_GATEWAY, roles=BILLING),
    f"{_INVOICES}/ListInvoices": Access(services=_GATEWAY, roles=BILLING),
    f"{_INVOICES}/CloseInvoice": Access(roles=OPERATORS),
    f"{_INVOICES}/VoidInvoice": Access(roles=OPERATORS),
    f"{_INVOICES}/CreateCreditNote": Access(roles=OPERATORS),
    f"{_INVOICES}/ListCreditNotes": Access(services=_GATEWAY, roles=BILLING),
    f"{_INVOICES}/GrantCredit": Access(roles=OPERATORS),
    f"{_INVOICES}/ListCredits": Access(services=_GATEWAY, roles=BILLING),
    f"{_INVOICES}/CreateCoupon": Access(roles=OPERATORS),
    f"{_INVOICES}/RedeemCoupon": Access(services=_GATEWAY, roles=BILLING),
    f"{_INVOICES}/SetBudget": Access(services=_GATEWAY, roles=BILLING),
    f"{_INVOICES}/GetBudget": Access(services=_GATEWAY, roles=BILLING),
    f"{_INVOICES}/ExportInvoice": Access(services=_GATEWAY, roles=BILLING),
}
