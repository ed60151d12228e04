"""Decisions about assets: pure functions of (record, event or request, now)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType

from ironworks.assetmanagerd.types import (
    KIND_OF_FORMAT,
    MAX_LABELS,
    MAX_LEASED_ASSETS,
    MAX_TEXT_CHARS,
    MAX_TTL_SECONDS,
    MIN_TTL_SECONDS,
    Asset,
    AssetEvent,
    AssetFilter,
    AssetState,
    Facts,
    Lease,
    Rule,
    Verdict,
    Who,
)
from ironworks.model.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from ironworks.model.units import NS_PER_SECOND

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ASSET_ID = re.compile(r"ast_[0-9a-z]{1,36}")
_LEASE_ID = re.compile(r"lse_[0-9a-z]{1,36}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
MAX_SOURCE_CHARS = 256


class Event(StrEnum):
    """What can happen to an asset."""

    VALIDATED = "validated"
    REFUSED = "refused"
    LEASED = "leased"
    LAST_LEASE_ENDED = "last_lease_ended"
    ARCHIVED = "archived"
    RESTORED = "restored"
    DELETED = "deleted"
    COLLECTED = "collected"


_S, _E = AssetState, Event
TRANSITIONS: Mapping[tuple[AssetState, Event], AssetState] = MappingProxyType(
    {
        (_S.REGISTERED, _E.VALIDATED): _S.AVAILABLE,
        (_S.REGISTERED, _E.REFUSED): _S.FAILED,
        (_S.AVAILABLE, _E.LEASED): _S.IN_USE,
        (_S.IN_USE, _E.LEASED): _S.IN_USE,
        (_S.IN_USE, _E.LAST_LEASE_ENDED): _S.AVAILABLE,
        (_S.AVAILABLE, _E.ARCHIVED): _S.ARCHIVED,
        (_S.ARCHIVED, _E.RESTORED): _S.AVAILABLE,
        (_S.ARCHIVED, _E.DELETED): _S.DELETED,
        (_S.FAILED, _E.DELETED): _S.DELETED,
        (_S.AVAILABLE, _E.COLLECTED): _S.DELETED,
        (_S.FAILED, _E.COLLECTED): _S.DELETED,
    }
)
"""All that can happen; what is not here is refused."""

_WHAT_TO_DO: Mapping[tuple[AssetState, Event], str] = MappingProxyType(
    {
        (_S.AVAILABLE, _E.DELETED): "Archive it first.",
        (_S.IN_USE, _E.DELETED): "Delete the VMs that use it, then archive it.",
        (_S.IN_USE, _E.ARCHIVED): "Delete the VMs that use it first.",
        (_S.ARCHIVED, _E.LEASED): "Restore it first.",
        (_S.FAILED, _E.LEASED): "Register or build it again.",
        (_S.REGISTERED, _E.LEASED): "Wait until it is available.",
        (_S.AVAILABLE, _E.RESTORED): "It is usable as it is.",
    }
)


_WHY_KEPT: Mapping[AssetState, str] = MappingProxyType(
    {
        _S.REGISTERED: "Its bytes are being validated.",
        _S.IN_USE: "Leases hold it.",
        _S.ARCHIVED: "It is archived; only a person deletes it.",
        _S.DELETED: "It is deleted already.",
    }
)


def next_state(asset: Asset, event: Event) -> AssetState:
    """The state of `asset` after `event`.

    Raises:
        FailedPrecondition: this cannot happen to it now; says why.
    """
    state = TRANSITIONS.get((asset.state, event))
    if state is None:
        raise FailedPrecondition(
            f"Asset {asset.asset_id} is {asset.state.value} and cannot be {event.value}.",
            hint=_WHAT_TO_DO.get((asset.state, event), ""),
        )
    return state


def sees(who: Who, asset: Asset) -> bool:
    """Whether `who` may know of `asset`: its own, and the platform's."""
    return who.sees_all or asset.tenant_id in ("", who.tenant_id)


def sees_use(who: Who, tenant_id: str) -> bool:
    """Whether `who` may know how assets of `tenant_id` are used.

    All tenants use the platform's: to one of them, that would tell what the others do.
    """
    return bool(tenant_id) or who.is_service or who.sees_all


def shown_state(who: Who, tenant_id: str, state: AssetState) -> AssetState:
    """`state` of an asset of `tenant_id`, as `who` may know it."""
    is_hidden = state is AssetState.IN_USE and not sees_use(who, tenant_id)
    return AssetState.AVAILABLE if is_hidden else state


def shown(who: Who, asset: Asset) -> Asset:
    """`asset` as `who` may know it."""
    if sees_use(who, asset.tenant_id):
        return asset
    return replace(
        asset,
        state=shown_state(who, asset.tenant_id, asset.state),
        lease_count=0,
        last_used_at_ns=0,
        updated_at_ns=asset.created_at_ns,
        revision=0,
    )


def tells(who: Who, event: AssetEvent, asset: Asset) -> bool:
    """Whether `who` may know that `event` happened to `asset`."""
    is_use = AssetState.IN_USE in (event.from_state, event.to_state)
    return sees(who, asset) and (not is_use or sees_use(who, asset.tenant_id))


def matches(asset: Asset, query: AssetFilter, state: AssetState) -> bool:
    """Whether `query` selects `asset` in `state`; without states it selects all."""
    return (
        (not query.states or state in query.states)
        and query.kind in (None, asset.kind)
        and query.format in (None, asset.format)
        and query.source_digest in ("", asset.source_digest)
        and query.architecture in ("", asset.architecture)
        and query.sha256 in ("", asset.sha256)
        and query.labels.items() <= asset.labels.items()
    )


def owns(who: Who, asset: Asset) -> bool:
    """Whether `who` may change `asset`."""
    return who.sees_all or asset.tenant_id == who.tenant_id


def unknown_asset(asset_id: str) -> NotFound:
    """The one answer for assets that do not exist and for those that are none of the caller's."""
    return NotFound(
        f"Asset {asset_id[:64]!r} is not known here.", hint="List the assets to see which are."
    )


def check_asset_id(asset_id: str) -> str:
    """`asset_id` if it can be one; what cannot is answered as any other that does not exist.

    Raises:
        NotFound: it cannot.
    """
    if not _ASSET_ID.fullmatch(asset_id):
        raise unknown_asset(asset_id)
    return asset_id


def unknown_lease(lease_id: str) -> NotFound:
    """The one answer for leases that do not exist and for those that are none of the caller's."""
    return NotFound(f"Lease {lease_id[:64]!r} is not known here.")


def check_lease_id(lease_id: str) -> str:
    """`lease_id` if it can be one.

    Raises:
        NotFound: it cannot.
    """
    if not _LEASE_ID.fullmatch(lease_id):
        raise unknown_lease(lease_id)
    return lease_id


def check_text(value: str, field: str, max_chars: int, min_chars: int = 0) -> str:
    """`value` if a database can store it.

    Raises:
        InvalidRequest: it is too short, too long, or has a NUL character.
    """
    if not min_chars <= len(value) <= max_chars or "\0" in value:
        bounds = f"{min_chars} to {max_chars}" if min_chars else f"at most {max_chars}"
        raise InvalidRequest(f"{field} has {bounds} characters, none of them NUL.")
    return value


def check_owned(who: Who, asset: Asset | None, asset_id: str) -> Asset:
    """`asset` if `who` may change it.

    Raises:
        NotFound: there is none that the caller may know of.
        PermissionDenied: it is the platform's, which the caller may only use.
    """
    if asset is None or not sees(who, asset):
        raise unknown_asset(asset_id)
    if not owns(who, asset):
        raise PermissionDenied(
            f"Asset {asset_id} belongs to the platform.", hint="Only an operator may change it."
        )
    return asset


def owner_of(who: Who, facts: Facts) -> str:
    """The tenant that will own what `who` registers; empty: the platform.

    Raises:
        PermissionDenied: platform assets are for operators and for services that act for no tenant.
    """
    if not facts.platform:
        if not who.tenant_id:
            raise PermissionDenied(
                "An asset needs a tenant.", hint="Say `platform` to register it for everyone."
            )
        return who.tenant_id
    if who.sees_all or (who.is_service and not who.tenant_id):
        return ""
    raise PermissionDenied("Only an operator may register assets for the platform.")


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels out of bounds.

    Raises:
        InvalidRequest: too many, too long, or an empty key.
    """
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(f"At most {MAX_LABELS} labels.")
    for key, value in labels.items():
        check_text(key, "The key of a label", MAX_TEXT_CHARS, 1)
        check_text(value, "The value of a label", MAX_TEXT_CHARS)


def check_filter(query: AssetFilter) -> None:
    """Refuse a filter that nothing could satisfy.

    Raises:
        InvalidRequest: says which part is out of bounds.
    """
    check_labels(query.labels)
    check_text(query.source_digest, "source_digest", MAX_SOURCE_CHARS)
    check_text(query.architecture, "architecture", MAX_TEXT_CHARS)
    if query.sha256:
        check_sha256(query.sha256)


def check_facts(facts: Facts, max_asset_bytes: int, *, named: bool = True) -> None:
    """Refuse facts out of bounds; those of bytes that are not `named` yet have no SHA-256.

    Raises:
        InvalidRequest: says which.
    """
    if named:
        check_sha256(facts.sha256)
    if not 0 < facts.size_bytes <= max_asset_bytes:
        raise InvalidRequest(f"size_bytes must be 1 to {max_asset_bytes}.")
    if facts.format is not None and KIND_OF_FORMAT[facts.format] is not facts.kind:
        raise InvalidRequest(f"{facts.format.value} is not a format of a {facts.kind.value}.")
    check_text(facts.media_type, "media_type", MAX_TEXT_CHARS)
    check_text(facts.architecture, "architecture", MAX_TEXT_CHARS)
    check_text(facts.build_id, "build_id", MAX_TEXT_CHARS)
    check_text(facts.source_digest, "source_digest", MAX_SOURCE_CHARS)
    check_labels(facts.labels)


def check_sha256(text: str) -> None:
    """Refuse what is not 64 hexadecimal digits in lower case.

    Raises:
        InvalidRequest: it is not.
    """
    if not _SHA256.fullmatch(text):
        raise InvalidRequest("sha256 must be 64 hexadecimal digits in lower case.")


def check_file_name(name: str, field: str) -> str:
    """`name` if it is one harmless path component.

    Raises:
        InvalidRequest: it is not.
    """
    if not _FILE_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{field} must be 1 to 128 characters of A-Za-z0-9._- and may not begin with a dot."
        )
    return name


def media_type(facts: Facts, format_value: str) -> str:
    """The media type of an asset that did not say one."""
    return facts.media_type or f"application/vnd.ironworks.{facts.kind.value}.{format_value}"


def lease_seconds(asked_seconds: int, default_seconds: int) -> int:
    """Time of a lease.

    Raises:
        InvalidRequest: out of bounds.
    """
    seconds = asked_seconds or default_seconds
    if not MIN_TTL_SECONDS <= seconds <= MAX_TTL_SECONDS:
        raise InvalidRequest(
            f"ttl_seconds must be {MIN_TTL_SECONDS} to {MAX_TTL_SECONDS}; 0 is the default."
        )
    return seconds


def check_lease_request(asset_ids: tuple[str, ...], holder: str, purpose: str) -> None:
    """Refuse a request for a lease that is out of bounds.

    Raises:
        InvalidRequest: says why.
    """
    if not 1 <= len(asset_ids) <= MAX_LEASED_ASSETS or len(set(asset_ids)) != len(asset_ids):
        raise InvalidRequest(f"A lease holds 1 to {MAX_LEASED_ASSETS} different assets.")
    check_text(holder, "holder", MAX_TEXT_CHARS, 1)
    check_text(purpose, "purpose", 2 * MAX_TEXT_CHARS)
    for asset_id in asset_ids:
        check_asset_id(asset_id)


def renewed(lease: Lease, now_ns: int, ttl_seconds: int) -> Lease:
    """`lease` for so long from now; never shorter than what was promised before."""
    ttl_ns = ttl_seconds * NS_PER_SECOND
    return replace(lease, expires_at_ns=max(lease.expires_at_ns, now_ns + ttl_ns), ttl_ns=ttl_ns)


def acquired(asset: Asset, now_ns: int) -> Asset:
    """`asset` with one more lease.

    Raises:
        FailedPrecondition: it cannot be leased; says why.
    """
    if asset.damage:
        raise FailedPrecondition(
            f"The bytes of asset {asset.asset_id} are damaged.", hint="Register or build it again."
        )
    state = next_state(asset, Event.LEASED)
    return _used(asset, state, asset.lease_count + 1, now_ns)


def let_go(asset: Asset, now_ns: int) -> Asset:
    """`asset` with one lease less."""
    count = asset.lease_count - 1
    state = asset.state if count else next_state(asset, Event.LAST_LEASE_ENDED)
    return _used(asset, state, count, now_ns)


def _used(asset: Asset, state: AssetState, lease_count: int, now_ns: int) -> Asset:
    return replace(
        asset,
        state=state,
        lease_count=lease_count,
        last_used_at_ns=now_ns,
        updated_at_ns=now_ns,
        revision=asset.revision + 1,
    )


def collectable_at_ns(asset: Asset, ttl_seconds: int) -> int:
    """Earliest time at which garbage collection may take an asset; 0 unless AVAILABLE."""
    if asset.state is not AssetState.AVAILABLE:
        return 0
    return max(asset.created_at_ns, asset.last_used_at_ns) + ttl_seconds * NS_PER_SECOND


def judge(asset: Asset, rule: Rule) -> Verdict:
    """Whether garbage collection takes an asset, and why."""
    keep = _reason_to_keep(asset, rule)
    if keep:
        return Verdict(asset_id=asset.asset_id, collected=False, reason=keep)
    if asset.state is AssetState.FAILED:
        return Verdict(asset_id=asset.asset_id, collected=True, reason="Its registration failed.")
    return Verdict(
        asset_id=asset.asset_id,
        collected=True,
        reason=f"Nobody has used it for {rule.ttl_seconds} s.",
        freed_bytes=asset.size_bytes,
    )


def _reason_to_keep(asset: Asset, rule: Rule) -> str:
    if asset.state is AssetState.FAILED:
        until_ns = asset.updated_at_ns + rule.failed_ttl_seconds * NS_PER_SECOND
        return "" if rule.now_ns >= until_ns else "It failed a short time ago; the reason is kept."
    if asset.lease_count or asset.state is AssetState.IN_USE:
        count = asset.lease_count
        return "1 lease holds it." if count == 1 else f"{count} leases hold it."
    if (asset.state, Event.COLLECTED) not in TRANSITIONS:
        return _WHY_KEPT[asset.state]
    if asset.asset_id in rule.needed:
        return "It is the platform's newest of its kind."
    if rule.now_ns < collectable_at_ns(asset, rule.ttl_seconds):
        return f"It has been unused for less than {rule.ttl_seconds} s."
    return ""
