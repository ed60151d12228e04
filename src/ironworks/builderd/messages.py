"""Messages of builderd's API: proto ↔ types, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ironworks.builderd.assets import image_config_message
from ironworks.builderd.flatten.plan import Action, Rule
from ironworks.builderd.policy import Policy
from ironworks.builderd.tenants import Credential
from ironworks.builderd.types import (
    Build,
    BuildResult,
    BuildState,
    Package,
    PolicyOutcome,
    PolicyReport,
    Progress,
    RootfsFormat,
)
from ironworks.gen.ironworks.builderd.v1 import build_pb as pb
from ironworks.gen.ironworks.builderd.v1 import policy_pb
from ironworks.model.errors import InvalidRequest

STATES: Mapping[BuildState, pb.BuildState] = {
    BuildState.QUEUED: pb.BuildState.QUEUED,
    BuildState.RESOLVING: pb.BuildState.RESOLVING,
    BuildState.PULLING: pb.BuildState.PULLING,
    BuildState.BUILDING: pb.BuildState.BUILDING,
    BuildState.VALIDATING: pb.BuildState.VALIDATING,
    BuildState.REGISTERING: pb.BuildState.REGISTERING,
    BuildState.COMPLETED: pb.BuildState.COMPLETED,
    BuildState.FAILED: pb.BuildState.FAILED,
    BuildState.CANCELLED: pb.BuildState.CANCELLED,
}
STATES_IN = {value: key for key, value in STATES.items()}
FORMATS: Mapping[RootfsFormat, pb.RootfsFormat] = {
    RootfsFormat.SQUASHFS: pb.RootfsFormat.SQUASHFS,
    RootfsFormat.EXT4: pb.RootfsFormat.EXT4,
}
FORMATS_IN = {value: key for key, value in FORMATS.items()}


def _result(result: BuildResult | None, packages: Sequence[Package]) -> pb.BuildResult | None:
    if result is None:
        return None
    return pb.BuildResult(
        asset_id=result.asset_id,
        sha256=result.sha256,
        size_bytes=result.size_bytes,
        unpacked_bytes=result.unpacked_bytes,
        file_count=result.file_count,
        layer_count=result.layer_count,
        image_config=image_config_message(result.image_config),
        packages=[
            pb.Package(
                manager=one.manager,
                name=one.name,
                version=one.version,
                architecture=one.architecture,
            )
            for one in packages
        ],
    )


def build_message(build: Build, progress: Progress, packages: Sequence[Package] = ()) -> pb.Build:
    """A build; `packages` only where they are asked for."""
    failure = build.failure
    return pb.Build(
        build_id=build.build_id,
        tenant_id=build.tenant_id,
        image=build.image,
        image_digest=build.image_digest,
        index_digest=build.index_digest,
        platform=build.platform,
        format=FORMATS[build.format],
        state=STATES[build.state],
        progress=pb.BuildProgress(
            done_bytes=progress.done_bytes, total_bytes=progress.total_bytes, step=progress.step
        ),
        stages=[
            pb.BuildStage(
                state=STATES[stage.state],
                started_at_ns=stage.started_at_ns,
                ended_at_ns=stage.ended_at_ns,
            )
            for stage in build.stages
        ],
        result=_result(build.result, packages),
        failure=None
        if failure is None
        else pb.BuildFailure(
            code=failure.code, message=failure.message, state=STATES[failure.state]
        ),
        reused_build_id=build.reused_build_id,
        policy_report=None if build.policy_report is None else report_message(build.policy_report),
        builder_version=build.builder_version,
        labels=dict(build.labels),
        priority=pb.BuildPriority(build.priority),
        timeout_seconds=build.timeout_seconds,
        attempt_count=build.attempt_count,
        worker=build.worker,
        created_at_ns=build.created_at_ns,
        started_at_ns=build.started_at_ns,
        updated_at_ns=build.updated_at_ns,
        ended_at_ns=build.ended_at_ns,
        revision=build.revision,
    )


_OUTCOMES: Mapping[PolicyOutcome, policy_pb.PolicyOutcome] = {
    PolicyOutcome.PASSED: policy_pb.PolicyOutcome.PASSED,
    PolicyOutcome.CHANGED: policy_pb.PolicyOutcome.CHANGED,
    PolicyOutcome.REFUSED: policy_pb.PolicyOutcome.REFUSED,
    PolicyOutcome.NOT_EVALUATED: policy_pb.PolicyOutcome.NOT_EVALUATED,
}
_ACTIONS: Mapping[Action, policy_pb.PolicyAction] = {
    Action.ALLOW: policy_pb.PolicyAction.ALLOW,
    Action.STRIP: policy_pb.PolicyAction.STRIP,
    Action.REFUSE: policy_pb.PolicyAction.REFUSE,
}
_ACTIONS_IN = {value: key for key, value in _ACTIONS.items()}


def report_message(report: PolicyReport) -> policy_pb.PolicyReport:
    """What a policy found."""
    return policy_pb.PolicyReport(
        outcome=_OUTCOMES[report.outcome],
        lines=[
            policy_pb.PolicyLine(
                rule=line.rule,
                outcome=_OUTCOMES[line.outcome],
                message=line.message,
                paths=list(line.paths),
                path_count=line.path_count,
            )
            for line in report.lines
        ],
        policy_digest=report.policy_digest,
    )


def policy_message(policy: Policy) -> policy_pb.Policy:
    """A policy; what is allowed by default is said too."""
    actions = {rule: _ACTIONS[policy.actions.get(rule, Action.ALLOW)] for rule in Rule}
    return policy_pb.Policy(
        allowed_sources=list(policy.allowed_sources),
        digest_required=policy.digest_required,
        max_packed_bytes=policy.max_packed_bytes,
        max_unpacked_bytes=policy.max_unpacked_bytes,
        max_file_count=policy.max_file_count,
        max_layer_count=policy.max_layer_count,
        max_path_bytes=policy.max_path_bytes,
        setuid_files=actions[Rule.SETUID_FILES],
        file_capabilities=actions[Rule.FILE_CAPABILITIES],
        device_nodes=actions[Rule.DEVICE_NODES],
        world_writable_directories=actions[Rule.WORLD_WRITABLE_DIRECTORIES],
        private_keys=actions[Rule.PRIVATE_KEYS],
        non_root_required=policy.non_root_required,
        required_labels=dict(policy.required_labels),
    )


def read_policy(message: policy_pb.Policy | None) -> Policy:
    """The policy that a message declares.

    Raises:
        InvalidRequest: there is none, or an action is not known.
    """
    if message is None:
        raise InvalidRequest("policy is missing.")
    asked = {
        Rule.SETUID_FILES: message.setuid_files,
        Rule.FILE_CAPABILITIES: message.file_capabilities,
        Rule.DEVICE_NODES: message.device_nodes,
        Rule.WORLD_WRITABLE_DIRECTORIES: message.world_writable_directories,
        Rule.PRIVATE_KEYS: message.private_keys,
    }
    for rule, action in asked.items():
        if action not in _ACTIONS_IN and action != policy_pb.PolicyAction.UNSPECIFIED:
            raise InvalidRequest(f"{rule.value} has an action that is not known here.")
    return Policy(
        allowed_sources=tuple(message.allowed_sources),
        digest_required=message.digest_required,
        max_packed_bytes=message.max_packed_bytes,
        max_unpacked_bytes=message.max_unpacked_bytes,
        max_file_count=message.max_file_count,
        max_layer_count=message.max_layer_count,
        max_path_bytes=message.max_path_bytes,
        actions={rule: _ACTIONS_IN.get(action, Action.ALLOW) for rule, action in asked.items()},
        non_root_required=message.non_root_required,
        required_labels=dict(message.required_labels),
    )


def credential_message(credential: Credential) -> pb.RegistryCredential:
    """A credential, without its password."""
    return pb.RegistryCredential(
        scope=credential.scope,
        username=credential.username,
        updated_at_ns=credential.updated_at_ns,
        last_used_at_ns=credential.last_used_at_ns,
    )
