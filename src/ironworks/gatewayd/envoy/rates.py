"""Rate limits: a bucket for each tenant, and one for each address where nobody is known yet. Pure.

Buckets are of one Envoy process; a second Envoy has its own.
"""

from __future__ import annotations

from typing import Any

from ironworks.gatewayd.envoy.types import Edge
from ironworks.gatewayd.types import TenantLimits

MAX_BUCKETS = 10_000
"""Buckets that are kept; beyond, the one that was used longest ago is forgotten. Envoy keeps 20 by
default, so that the 21st tenant would fill up the first one's bucket."""
EXCHANGES_PER_SECOND = 20
EXCHANGE_BURST = 60
UNLIMITED = 1_000_000
_KIND = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_EVERYTHING = {"numerator": 100, "denominator": "HUNDRED"}


def _bucket(per_second: int, burst: int) -> dict[str, Any]:
    return {"max_tokens": burst, "tokens_per_fill": per_second, "fill_interval": "1s"}


def _tenant_bucket(value: str, limits: TenantLimits) -> dict[str, Any]:
    entry = {"key": "tenant", "value": value} if value else {"key": "tenant"}
    bucket = _bucket(limits.requests_per_second, limits.request_burst)
    return {"entries": [entry], "token_bucket": bucket}


def _limit(action: dict[str, Any], descriptors: list[dict[str, Any]]) -> dict[str, Any]:
    header = {"header": {"key": "retry-after", "value": "1"}}
    return {
        "@type": _KIND,
        "stat_prefix": "edge_limit",
        "token_bucket": _bucket(UNLIMITED, UNLIMITED),
        "filter_enabled": {"default_value": _EVERYTHING, "runtime_key": "edge.limit_enabled"},
        "filter_enforced": {"default_value": _EVERYTHING, "runtime_key": "edge.limit_enforced"},
        "rate_limits": [{"actions": [action]}],
        "descriptors": descriptors,
        "max_dynamic_descriptors": MAX_BUCKETS,
        "response_headers_to_add": [{**header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
    }


def tenant_rates(edge: Edge) -> dict[str, Any]:
    """What a request with a token drains: its tenant's bucket, or that of the operators.

    An entry without a value stands for every value, each with a bucket of its own.
    """
    claim = {
        "descriptor_key": "tenant",
        "metadata_key": {
            "key": "envoy.filters.http.jwt_authn",
            "path": [{"key": "claims"}, {"key": "tenant"}],
        },
        "default_value": "operator",
        "source": "DYNAMIC",
    }
    own = sorted(edge.tenant_limits.items())
    descriptors = [_tenant_bucket(tenant_id, limits) for tenant_id, limits in own]
    return _limit({"metadata": claim}, [*descriptors, _tenant_bucket("", edge.limits)])


def address_rates() -> dict[str, Any]:
    """What a request without a token drains: the bucket of its address."""
    bucket = _bucket(EXCHANGES_PER_SECOND, EXCHANGE_BURST)
    descriptor = {"entries": [{"key": "remote_address"}], "token_bucket": bucket}
    return _limit({"remote_address": {}}, [descriptor])
