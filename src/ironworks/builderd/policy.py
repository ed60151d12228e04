"""Policies: which images may become root file systems, and what is changed in them on the way.

Data and pure functions. What is in force for a tenant is the platform's policy narrowed by its own.
Rules about the reference are decided before anything is fetched, rules about the manifest and the
configuration before a layer is read, rules about files while the tree is made; `report` puts them
together, one line for each rule, in the order of `RULES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter

from ironworks.builderd.flatten.plan import Action, Finding, Rule
from ironworks.builderd.types import (
    ImageConfig,
    ImageReference,
    Manifest,
    PolicyLine,
    PolicyOutcome,
    PolicyReport,
    Transport,
)
from ironworks.model.errors import InvalidRequest, PermissionDenied
from ironworks.model.units import format_bytes

MAX_SOURCES = 256
MAX_SOURCE_CHARS = 256
MAX_LABELS = 64
LOCAL, UPLOAD = "local", "upload"
"""Sources of images that come from the platform's machine, and of uploaded ones."""
NOWHERE = "nowhere.invalid"
"""What is allowed where two lists have nothing in common."""
_SHOWN = 3

_LIMITS: Mapping[str, str] = {
    "max_packed_bytes": "blobs of the image together",
    "max_unpacked_bytes": "unpacked",
    "max_file_count": "files",
    "max_layer_count": "layers",
    "max_path_bytes": "bytes of the longest path",
}
# How the flattening says that a bound is exceeded.
_LIMIT_MARKS: Mapping[str, str] = {
    "max_unpacked_bytes": "unpacks to more than",
    "max_file_count": "The image has more than",
    "max_path_bytes": "its name is longer than",
}
RULES: tuple[str, ...] = (
    "allowed_sources",
    "digest_required",
    "max_packed_bytes",
    "max_layer_count",
    "non_root_required",
    "required_labels",
    "max_unpacked_bytes",
    "max_file_count",
    "max_path_bytes",
    *Rule,
)
_STRIPPED: Mapping[str, str] = {
    Rule.SETUID_FILES: "lost their setuid and setgid bits",
    Rule.FILE_CAPABILITIES: "lost their capabilities",
    Rule.DEVICE_NODES: "were left out",
    Rule.WORLD_WRITABLE_DIRECTORIES: "got the sticky bit",
    Rule.PRIVATE_KEYS: "were left out",
}
_NOUNS: Mapping[str, str] = {
    Rule.SETUID_FILES: "files with the setuid or setgid bit",
    Rule.FILE_CAPABILITIES: "files with capabilities",
    Rule.DEVICE_NODES: "device nodes",
    Rule.WORLD_WRITABLE_DIRECTORIES: "directories that everyone may write, without the sticky bit,",
    Rule.PRIVATE_KEYS: "private keys",
}
_STRICTNESS = (Action.ALLOW, Action.STRIP, Action.REFUSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """See `builderd.v1.Policy`; a limit of 0 is the platform's setting."""

    allowed_sources: tuple[str, ...] = ()
    digest_required: bool = False
    max_packed_bytes: int = 0
    max_unpacked_bytes: int = 0
    max_file_count: int = 0
    max_layer_count: int = 0
    max_path_bytes: int = 0
    actions: Mapping[Rule, Action] = field(default_factory=dict[Rule, Action])
    non_root_required: bool = False
    required_labels: Mapping[str, str] = field(default_factory=dict[str, str])


_POLICY = TypeAdapter(Policy)


def encode(policy: Policy) -> str:
    """The canonical text of a policy: the same for the same meaning."""
    canonical = replace(
        policy,
        allowed_sources=tuple(sorted(set(policy.allowed_sources))),
        actions={
            rule: policy.actions[rule]
            for rule in Rule
            if policy.actions.get(rule, Action.ALLOW) is not Action.ALLOW
        },
        required_labels=dict(sorted(policy.required_labels.items())),
    )
    return _POLICY.dump_json(canonical).decode()


def decode(text: str) -> Policy:
    """What `encode` was given."""
    return _POLICY.validate_json(text)


def digest(policy: Policy) -> str:
    """What identifies a policy: 64 hexadecimal digits."""
    return hashlib.sha256(encode(policy).encode()).hexdigest()


def check(policy: Policy) -> None:
    """Refuse what is no policy.

    Raises:
        InvalidRequest: a list is too long, a limit negative, or a source cannot be one.
    """
    if len(policy.allowed_sources) > MAX_SOURCES:
        raise InvalidRequest(f"At most {MAX_SOURCES} sources can be allowed.")
    for source in policy.allowed_sources:
        plain = source.replace("-", "").replace(".", "").replace("_", "").replace(":", "")
        if (
            not 1 <= len(source) <= MAX_SOURCE_CHARS
            or not plain.replace("/", "").isalnum()
            or source.strip("/") != source
            or not source.isascii()
        ):
            raise InvalidRequest(
                f"{source[:80]!r} is not a registry or a repository.",
                hint="Write it like ghcr.io/acme, or local, or upload.",
            )
    for name in _LIMITS:
        if getattr(policy, name) < 0:
            raise InvalidRequest(f"{name} must be 0 or more.")
    labels = policy.required_labels
    if len(labels) > MAX_LABELS or any(
        not key or max(len(key), len(value)) > MAX_SOURCE_CHARS for key, value in labels.items()
    ):
        raise InvalidRequest(
            f"At most {MAX_LABELS} labels can be required, of 1 to {MAX_SOURCE_CHARS} characters."
        )


def narrow(platform: Policy, tenant: Policy) -> Policy:
    """The platform's policy, narrowed by a tenant's: whatever either refuses is refused.

    Where both require one label with different values, the platform's value counts.
    """
    return Policy(
        allowed_sources=_common(platform.allowed_sources, tenant.allowed_sources),
        digest_required=platform.digest_required or tenant.digest_required,
        max_packed_bytes=_least(platform.max_packed_bytes, tenant.max_packed_bytes),
        max_unpacked_bytes=_least(platform.max_unpacked_bytes, tenant.max_unpacked_bytes),
        max_file_count=_least(platform.max_file_count, tenant.max_file_count),
        max_layer_count=_least(platform.max_layer_count, tenant.max_layer_count),
        max_path_bytes=_least(platform.max_path_bytes, tenant.max_path_bytes),
        actions={
            rule: max(
                platform.actions.get(rule, Action.ALLOW),
                tenant.actions.get(rule, Action.ALLOW),
                key=_STRICTNESS.index,
            )
            for rule in Rule
        },
        non_root_required=platform.non_root_required or tenant.non_root_required,
        required_labels={
            **tenant.required_labels,
            **{
                key: value or tenant.required_labels.get(key, "")
                for key, value in platform.required_labels.items()
            },
        },
    )


def _least(one: int, other: int) -> int:
    return min(one or other, other or one)


def _within(source: str, allowed: str) -> bool:
    return source == allowed or source.startswith(f"{allowed}/")


def _common(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    if not one or not other:
        return tuple(sorted(set(one) | set(other)))
    both = {a for a in one if any(_within(a, b) for b in other)}
    both |= {b for b in other if any(_within(b, a) for a in one)}
    return tuple(sorted(both)) or (NOWHERE,)


# --- evaluation ---------------------------------------------------------------------------------


def _line(rule: str, *, passed: bool, message: str) -> PolicyLine:
    outcome = PolicyOutcome.PASSED if passed else PolicyOutcome.REFUSED
    return PolicyLine(rule=rule, outcome=outcome, message=message)


def source_of(reference: ImageReference) -> str:
    """What `allowed_sources` is compared with: registry and repository, `local` or `upload`."""
    if reference.transport is Transport.UPLOAD:
        return UPLOAD
    if reference.transport is not Transport.REGISTRY:
        return LOCAL
    head, slash, last = reference.location.partition("@")[0].rpartition("/")
    return head + slash + last.partition(":")[0]


def judge_reference(policy: Policy, reference: ImageReference) -> list[PolicyLine]:
    """What can be said before anything is fetched; `reference` names its registry."""
    source = source_of(reference)
    allowed = policy.allowed_sources
    if not allowed:
        first = _line("allowed_sources", passed=True, message="Images may come from anywhere.")
    elif any(_within(source, one) for one in allowed):
        first = _line("allowed_sources", passed=True, message=f"{source} is allowed.")
    else:
        first = _line(
            "allowed_sources",
            passed=False,
            message=f"{source} is not among what is allowed: {_some(allowed)}.",
        )
    pinned = reference.transport is not Transport.REGISTRY or "@sha256:" in reference.location
    if not policy.digest_required:
        text = "A tag without a digest is allowed."
    elif pinned:
        text = "The image is named by its digest." if source not in (LOCAL, UPLOAD) else "No tag."
    else:
        text = "The reference has no digest: append @sha256:…."
    passed = pinned or not policy.digest_required
    return [first, _line("digest_required", passed=passed, message=text)]


def judge_manifest(policy: Policy, manifest: Manifest) -> list[PolicyLine]:
    """What the manifest tells."""
    packed = manifest.config.size_bytes + sum(layer.size_bytes for layer in manifest.layers)
    return [
        _limit("max_packed_bytes", format_bytes(packed), packed, policy.max_packed_bytes),
        _limit(
            "max_layer_count",
            str(len(manifest.layers)),
            len(manifest.layers),
            policy.max_layer_count,
        ),
    ]


def _limit(rule: str, shown: str, found: int, maximum: int) -> PolicyLine:
    what = _LIMITS[rule]
    if not maximum or found <= maximum:
        return _line(rule, passed=True, message=f"{shown} {what}.")
    limit = format_bytes(maximum) if rule.endswith("_bytes") else str(maximum)
    return _line(rule, passed=False, message=f"{shown} {what}; at most {limit} are allowed.")


def runs_as_root(config: ImageConfig) -> bool:
    """Whether the image names no user, or root."""
    user = config.user.partition(":")[0].strip()
    return user in ("", "root") or (user.isdecimal() and int(user) == 0)


def judge_config(policy: Policy, config: ImageConfig) -> list[PolicyLine]:
    """What the image's configuration tells."""
    root = runs_as_root(config)
    who = "The image runs as root" if root else f"The image runs as {config.user[:64]!r}"
    if root and policy.non_root_required:
        user = _line(
            "non_root_required",
            passed=False,
            message=f"{who}; set USER to another when building it.",
        )
    else:
        user = _line("non_root_required", passed=True, message=f"{who}.")
    missing = [
        f"{key}={value}" if value else key
        for key, value in sorted(policy.required_labels.items())
        if key not in config.labels or (value and config.labels[key] != value)
    ]
    if missing:
        text = f"The image lacks {len(missing)} labels: {_some(missing)}."
    elif policy.required_labels:
        text = f"The image has all {len(policy.required_labels)} labels."
    else:
        text = "No label is required."
    return [user, _line("required_labels", passed=not missing, message=text)]


def judge_user(policy: Policy, config: ImageConfig, user_id: int | None) -> list[PolicyLine]:
    """What the image's own `/etc/passwd` tells of its user, if that matters.

    Args:
        policy: In force.
        config: Names the user.
        user_id: Who that is in the image; None: nobody.
    """
    if not policy.non_root_required or (user_id is not None and user_id > 0):
        return []
    who = "is user 0" if user_id == 0 else "is nobody"
    text = f"The image runs as {config.user[:64]!r}, who {who} in its /etc/passwd."
    return [_line("non_root_required", passed=False, message=text)]


def judge_tree(
    policy: Policy, findings: Iterable[Finding], unpacked_bytes: int, file_count: int
) -> list[PolicyLine]:
    """What flattening found; it has refused what is beyond the limits, so they are kept."""
    met = {finding.rule: finding for finding in findings}
    return [
        _line("max_unpacked_bytes", passed=True, message=_told(unpacked_bytes, "unpacked")),
        _line("max_file_count", passed=True, message=f"{file_count or 'Not too many'} files."),
        _line("max_path_bytes", passed=True, message="No path is too long."),
        *(_finding(rule, policy.actions.get(rule, Action.ALLOW), met.get(rule)) for rule in Rule),
    ]


def _told(count: int, what: str) -> str:
    return f"{format_bytes(count)} {what}." if count else "Within the limit."


def _finding(rule: Rule, action: Action, found: Finding | None) -> PolicyLine:
    if action is Action.ALLOW or found is None:
        return PolicyLine(
            rule=rule, outcome=PolicyOutcome.PASSED, message="Allowed, so not looked for."
        )
    if not found.path_count:
        text = f"There are no {_NOUNS[rule].rstrip(',')}."
        return PolicyLine(rule=rule, outcome=PolicyOutcome.PASSED, message=text)
    refused = action is Action.REFUSE
    what = "are refused" if refused else _STRIPPED[rule]
    return PolicyLine(
        rule=rule,
        outcome=PolicyOutcome.REFUSED if refused else PolicyOutcome.CHANGED,
        message=f"{found.path_count} {_NOUNS[rule]} {what}: {_some(found.paths)}.",
        paths=found.paths,
        path_count=found.path_count,
    )


def judge_refusal(error: InvalidRequest) -> list[PolicyLine]:
    """What flattening says of a limit that it met; empty if it refused for another reason."""
    for rule, mark in _LIMIT_MARKS.items():
        if mark in error.message:
            return [_line(rule, passed=False, message=error.message)]
    return []


def report(policy: Policy, lines: Iterable[PolicyLine], why_not: str) -> PolicyReport:
    """All lines, in order; a rule without one was not evaluated, and `why_not` says why."""
    known = {line.rule: line for line in lines}
    return PolicyReport(
        lines=tuple(
            known.get(
                rule,
                PolicyLine(rule=rule, outcome=PolicyOutcome.NOT_EVALUATED, message=why_not),
            )
            for rule in RULES
        ),
        policy_digest=digest(policy),
    )


def refusal(lines: Iterable[PolicyLine]) -> PermissionDenied | None:
    """Why the policy refuses, as the build's owner reads it; None if it does not."""
    refused = [line for line in lines if line.outcome is PolicyOutcome.REFUSED]
    if not refused:
        return None
    said = " ".join(f"{one.rule}: {one.message}" for one in refused)
    return PermissionDenied(
        f"The policy refuses the image. {said}",
        hint="Change the image, or ask who sets the policy.",
    )


def _some(values: Sequence[str]) -> str:
    shown = ", ".join(values[:_SHOWN])
    return f"{shown} and {len(values) - _SHOWN} more" if len(values) > _SHOWN else shown
