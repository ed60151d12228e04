"""`iron policy`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, cast

from cyclopts import App
from protobuf import message_from_json_value

from ironworks.cli.images import sent
from ironworks.cli.options import DEFAULTS, Options
from ironworks.cli.output import Output, as_json, state_name
from ironworks.gen.ironworks.builderd.v1 import policy_pb
from ironworks.model.errors import FailedPrecondition, InvalidRequest
from ironworks.model.units import parse_bytes

app = App(name="policy", help="Which images may be built, and what is changed in them.")
ACTIONS = (
    "setuid_files",
    "file_capabilities",
    "device_nodes",
    "world_writable_directories",
    "private_keys",
)
_BYTES = ("max_packed_bytes", "max_unpacked_bytes")
_MAX_FILE_BYTES = 1 << 20


def read_policy(path: Path) -> policy_pb.Policy:
    """The policy that a TOML file declares.

    Raises:
        InvalidRequest: it cannot be read, or has something else than a policy.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode()
        declared: dict[str, Any] = tomllib.loads(text)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"{path} is not TOML: {error}.") from None
    for name in ACTIONS:
        if name in declared:
            word = str(declared[name])
            if word not in ("allow", "strip", "refuse"):
                raise InvalidRequest(f"{name} must be allow, strip or refuse, not {word!r}.")
            declared[name] = f"POLICY_ACTION_{word.upper()}"
    for name in _BYTES:
        if isinstance(declared.get(name), str):
            declared[name] = parse_bytes(declared[name])
    try:
        return message_from_json_value(policy_pb.Policy, declared)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(
            f"{path} has something else than a policy: {error}.",
            hint="`iron policy get` shows what there is.",
        ) from None


def _word(value: object) -> object:
    """A value of a policy for people."""
    match value:
        case bool():
            return "yes" if value else "no"
        case str():
            return value.removeprefix("POLICY_ACTION_").lower()
        case list():
            return ", ".join(map(str, cast("list[object]", value))) or "-"
        case dict():
            labels = cast("dict[str, object]", value)
            return ", ".join(f"{key}={one}" for key, one in labels.items()) or "-"
        case _:
            return value


def say_report(out: Output, report: policy_pb.PolicyReport) -> None:
    """The lines of a report, as a table."""
    out.table(
        ("RULE", "OUTCOME", "FOUND"),
        [(one.rule, state_name(one.outcome), one.message) for one in report.lines],
    )


@app.command
async def get(*, platform: bool = False, options: Options = DEFAULTS) -> None:
    """Show the tenant's policy, and what is in force with the platform's.

    Args:
        platform: The platform's own.
    """
    out = options.output()
    async with options.client() as client:
        found = await client.policies.get(platform=platform)
    if options.json:
        out.line(found)
        return
    declared = as_json(found.policy or policy_pb.Policy())
    force = as_json(found.effective_policy or policy_pb.Policy())
    out.table(
        ("RULE", "DECLARED", "IN FORCE"),
        [(name, _word(declared[name]), _word(force[name])) for name in declared],
    )
    out.say(f"Revision {found.revision}.")


@app.command(name="set")
async def set_(
    file: Path, /, *, platform: bool = False, revision: int = -1, options: Options = DEFAULTS
) -> None:
    """Replace the tenant's policy. It narrows the platform's, and cannot widen it.

    Args:
        file: TOML, for example `setuid_files = "strip"`; what it does not name is allowed.
        platform: The platform's own. For operators.
        revision: Only if this one is in force; default: whichever is.
    """
    policy = read_policy(file)
    async with options.client() as client:
        if revision < 0:
            revision = (await client.policies.get(platform=platform)).revision
        made = await client.policies.set(policy, expected_revision=revision, platform=platform)
    options.output().fields({"revision": made}, {"Revision": made})


@app.command(name="try")
async def try_(image: str, /, *, file: Path | None = None, options: Options = DEFAULTS) -> None:
    """Try a policy on an image without building it. Ends with an error if the image is refused.

    Args:
        image: As for `iron build`.
        file: The policy, TOML; default: the one in force.
    """
    policy, out = read_policy(file) if file is not None else None, options.output()
    async with options.client() as client:
        reference = await sent(client, image, out.say)
        found = await client.policies.evaluate(reference, policy=policy)
    report = found.report or policy_pb.PolicyReport()
    if options.json:
        out.line(found)
    else:
        out.say(f"{image} is {found.image_digest or 'not fetched'}.")
        say_report(out, report)
    if report.outcome is policy_pb.PolicyOutcome.REFUSED and not options.json:
        raise FailedPrecondition("The policy refuses the image.")
