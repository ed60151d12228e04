"""Make one image a file system and an asset: the stages of a build, and the trial of a policy."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection

from ironworks.builderd import policy as policies
from ironworks.builderd import store, tenants, turns
from ironworks.builderd.cgroup import build_groups
from ironworks.builderd.decide import move, reuse_key, with_registry
from ironworks.builderd.flatten.plan import Flattened, Layer, Limits, Plan
from ironworks.builderd.journal import Journal
from ironworks.builderd.policy import Policy
from ironworks.builderd.reach import Login, Reach
from ironworks.builderd.sandbox import run_flatten
from ironworks.builderd.sources.documents import read_config
from ironworks.builderd.sources.local import check_blob, read_blob
from ironworks.builderd.types import (
    Build,
    BuilderSettings,
    BuildResult,
    BuildState,
    ImageConfig,
    ImageReference,
    Manifest,
    Package,
    PolicyLine,
    PolicyOutcome,
    PolicyReport,
    Progress,
    Pulled,
    Registered,
    Resolved,
    Transport,
)
from ironworks.model.errors import Internal, InvalidRequest, PermissionDenied
from ironworks.model.units import NS_PER_MS, NS_PER_SECOND, format_bytes
from ironworks.runtime.architecture import host_architecture
from ironworks.runtime.clock import Clock
from ironworks.runtime.resilience import Breaker, call

LOCK_SECONDS = 20
"""How long a build that does not renew it keeps others from building the same."""
_LOCK_POLL_SECONDS = 0.25


class AssetRegistry(Protocol):
    """What builderd needs of assetmanagerd."""

    async def is_usable(self, tenant_id: str, asset_id: str) -> bool:
        """Whether the asset can be leased."""
        ...

    async def register(
        self, build: Build, made: Flattened, config: ImageConfig, staged_name: str
    ) -> Registered:
        """Hand bytes over; answers the asset, which is AVAILABLE then."""
        ...


class Refused(PermissionDenied):
    """The policy refuses an image; the report says what all its rules found."""

    def __init__(self, refusal: PermissionDenied, report: PolicyReport) -> None:
        super().__init__(refusal.message, hint=refusal.hint)
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An image whose documents have been read; `blobs` are its layers, lowest first."""

    manifest: Manifest
    config: ImageConfig
    diff_ids: Sequence[str]
    blobs: Sequence[Path]


class Maker:
    """Runs the stages of builds; `parse` takes references apart."""

    def __init__(
        self,
        *,
        journal: Journal,
        assets: AssetRegistry,
        reach: Reach,
        settings: BuilderSettings,
        clock: Clock,
        parse: Callable[[str], ImageReference],
    ) -> None:
        self._journal = journal
        self._assets = assets
        self._reach = reach
        self._settings = settings
        self._groups = build_groups(settings, clock)
        self._clock = clock
        self._parse = parse
        self._registering = Breaker()

    def reference(self, image: str) -> ImageReference:
        """What an image's name means here."""
        return with_registry(self._parse(image), self._settings.default_registry)

    async def policy(self, tenant_id: str) -> Policy:
        """What is in force for a tenant."""
        return await self._journal.database.read(
            lambda connection: tenants.effective_policy(connection, tenant_id)
        )

    # --- a build ----------------------------------------------------------------------------------

    async def make(self, build: Build, scratch: Path) -> None:
        """Bring a build that was just taken up to its end.

        Raises:
            Aborted: it is in other hands, or has been cancelled.
            Refused: the policy refuses the image.
            IronError: it failed for another reason.
        """
        reference, policy = self.reference(build.image), await self.policy(build.tenant_id)
        lines = policies.judge_reference(policy, reference)
        _refuse(policy, lines)
        login = await self._reach.login(build.tenant_id, reference)
        resolved, pulled = await self._reach.resolve(build.tenant_id, reference, scratch, login)
        build = await self._journal.write(
            build,
            lambda _: replace(
                build,
                image_digest=resolved.digest,
                index_digest=resolved.index_digest,
                platform=f"linux/{host_architecture()}",
                policy_digest=policies.digest(policy),
            ),
            f"{build.image} is {resolved.digest}.",
        )
        async with self._alone(build):
            made = None if build.force else await self.find_made(build)
            if made is not None:
                await self.reuse(build, made, scratch)
                return
            build = await self._journal.enter(build, BuildState.PULLING, "Fetching the image.")
            if reference.transport is Transport.REGISTRY:
                lines += policies.judge_manifest(policy, self._reach.read(pulled))
                _refuse(policy, lines)
                pulled = await self._pull(build, reference, resolved, pulled, login)
            await self._build(build, pulled, policy, lines[:2], scratch)

    async def _pull(
        self,
        build: Build,
        reference: ImageReference,
        resolved: Resolved,
        pulled: Pulled,
        login: Login,
    ) -> Pulled:
        manifest = self._reach.read(pulled)
        blobs = [manifest.config, *manifest.layers]
        total = sum(blob.size_bytes for blob in blobs)

        def told(done_bytes: int) -> None:
            self._report(build.build_id, "fetching layers", done_bytes, total)

        with self._reach.using([blob.digest for blob in blobs]):
            return await self._reach.pull(
                build.tenant_id, reference, resolved, pulled, login=login, on_bytes=told
            )

    async def _build(
        self,
        build: Build,
        pulled: Pulled,
        policy: Policy,
        lines: Sequence[PolicyLine],
        scratch: Path,
    ) -> None:
        image = await self._open(pulled)
        digests = [layer.digest for layer in image.manifest.layers]
        lines = [
            *lines,
            *policies.judge_manifest(policy, image.manifest),
            *policies.judge_config(policy, image.config),
        ]
        _refuse(policy, lines)
        packed = sum(layer.size_bytes for layer in image.manifest.layers)
        build = await self._journal.enter(
            build,
            BuildState.BUILDING,
            f"Merging {len(image.blobs)} layers of {format_bytes(packed)}.",
        )
        with self._reach.using(digests):
            plan = self._plan(image, policy, build.format.value)
            try:
                made = await run_flatten(
                    plan,
                    blobs=image.blobs,
                    scratch=scratch,
                    on_step=partial(self._report, build.build_id),
                    groups=self._groups,
                )
            except InvalidRequest as error:
                lines += policies.judge_refusal(error)
                _refuse(policy, lines)
                raise
        lines += policies.judge_user(policy, image.config, made.user_id)
        lines += policies.judge_tree(policy, made.findings, made.unpacked_bytes, made.file_count)
        await self._register(build, made, image, policies.report(policy, lines, ""), scratch)

    async def _open(self, pulled: Pulled) -> Opened:
        manifest = self._reach.read(pulled)
        config_bytes = await asyncio.to_thread(read_blob, pulled.blobs, manifest.config)
        config, diff_ids = read_config(config_bytes, len(manifest.layers))
        blobs = [
            await asyncio.to_thread(check_blob, pulled.blobs, layer) for layer in manifest.layers
        ]
        return Opened(manifest=manifest, config=config, diff_ids=diff_ids, blobs=blobs)

    def _plan(self, image: Opened, policy: Policy, rootfs_format: str) -> Plan:
        limits = self._settings
        layers = zip(image.manifest.layers, image.diff_ids, strict=True)
        return Plan(
            layers=tuple(
                Layer(
                    path=f"/blobs/{index}",
                    digest=layer.digest,
                    size_bytes=layer.size_bytes,
                    diff_id=diff_id,
                )
                for index, (layer, diff_id) in enumerate(layers)
            ),
            output="/scratch/rootfs" if rootfs_format else "",
            scratch="/scratch",
            format=rootfs_format or "squashfs",
            rules=policy.actions,
            limits=Limits(
                unpacked_bytes=_least(policy.max_unpacked_bytes, limits.max_unpacked_bytes),
                file_count=_least(policy.max_file_count, limits.max_image_files),
                path_bytes=_least(policy.max_path_bytes, limits.max_path_bytes),
                free_bytes=limits.min_free_bytes,
            ),
            processors=limits.build_processors,
            user=image.config.user,
        )

    async def _register(
        self,
        build: Build,
        made: Flattened,
        image: Opened,
        report: PolicyReport,
        scratch: Path,
    ) -> None:
        refusal = policies.refusal(report.lines)
        if refusal is not None:
            raise Refused(refusal, report)
        packages = tuple(
            Package(
                manager=one.manager,
                name=one.name,
                version=one.version,
                architecture=one.architecture,
            )
            for one in made.packages
        )
        build = await self._journal.write(
            build,
            lambda now: replace(move(build, BuildState.VALIDATING, now), policy_report=report),
            f"Wrote {format_bytes(made.size_bytes)}: {made.file_count} files of "
            f"{format_bytes(made.unpacked_bytes)}, {len(packages)} packages.",
            lambda connection: store.write_packages(connection, build.build_id, packages),
        )
        await self._tell(build, report, made.notes)
        size_bytes = (await asyncio.to_thread((scratch / "rootfs").stat)).st_size
        if size_bytes != made.size_bytes or made.file_count == 0:
            raise Internal("The file system that was written is not there, or empty.")
        build = await self._journal.enter(build, BuildState.REGISTERING, "Handing the bytes over.")
        staged_name = f"{build.build_id}.{build.attempt_count}.rootfs"

        async def hand_over() -> Registered:
            # A try that failed half-way may have taken the file already.
            if (scratch / "rootfs").exists():
                (scratch / "rootfs").replace(self._settings.staging_dir / staged_name)
            return await self._assets.register(build, made, image.config, staged_name)

        asset = await call(hand_over, clock=self._clock, breaker=self._registering)
        # Who sees that the build has ended finds nothing of it left.
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        result = BuildResult(
            asset_id=asset.asset_id,
            sha256=asset.sha256,
            size_bytes=made.size_bytes,
            unpacked_bytes=made.unpacked_bytes,
            file_count=made.file_count,
            layer_count=len(image.blobs),
            image_config=image.config,
        )
        took_ms = (self._clock.now_ns() - build.created_at_ns) // NS_PER_MS
        await self._journal.write(
            build,
            lambda now: replace(move(build, BuildState.COMPLETED, now), result=result),
            f"Asset {asset.asset_id} is available, {took_ms} ms after the build was asked for.",
        )

    async def _tell(self, build: Build, report: PolicyReport, notes: Sequence[str]) -> None:
        changed = [one for one in report.lines if one.outcome is PolicyOutcome.CHANGED]
        for text in (*notes, *(f"Policy: {one.message}" for one in changed)):
            await self._journal.say(build, text)

    # --- once, however many ask -------------------------------------------------------------------

    async def find_made(self, build: Build) -> Build | None:
        """An earlier build of the tenant whose result serves this one too."""
        made = await self._journal.database.read(
            lambda connection: store.find_made(connection, build)
        )
        if made is None or made.result is None:
            return None
        usable = await self._assets.is_usable(build.tenant_id, made.result.asset_id)
        return made if usable else None

    async def reuse(self, build: Build, made: Build, scratch: Path) -> Build:
        """Complete a build with an earlier one's result."""
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        return await self._journal.write(
            build,
            lambda now: replace(
                move(build, BuildState.COMPLETED, now),
                result=made.result,
                reused_build_id=made.build_id,
                policy_report=made.policy_report,
            ),
            f"Built before, by {made.build_id}.",
        )

    @asynccontextmanager
    async def _alone(self, build: Build) -> AsyncGenerator[None]:
        """Nobody else builds the same; whoever asks for it meanwhile waits, and finds it made."""
        key, told = reuse_key(build), ""
        while (holder := await self._lock(key, build)) != build.build_id:
            if holder != told:
                told = holder
                await self._journal.say(build, f"{holder} builds the same; waiting for it.")
            await self._clock.sleep(_LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            await asyncio.shield(
                self._journal.database.write(
                    lambda connection: turns.unlock(connection, build.build_id)
                )
            )

    async def _lock(self, key: str, build: Build) -> str:
        now_ns = self._clock.now_ns()
        until_ns = now_ns + LOCK_SECONDS * NS_PER_SECOND

        def work(connection: Connection) -> str:
            return turns.lock(connection, key, build.build_id, until_ns, now_ns)

        return await self._journal.database.write(work)

    def _report(self, build_id: str, step: str, done_bytes: int, total_bytes: int) -> None:
        self._journal.report(
            build_id, Progress(step=step, done_bytes=done_bytes, total_bytes=total_bytes)
        )

    # --- a trial ----------------------------------------------------------------------------------

    async def evaluate(
        self, tenant_id: str, image: str, policy: Policy | None, scratch: Path
    ) -> tuple[PolicyReport, str]:
        """What a policy finds in an image, and the image's digest; nothing is built.

        The layers are fetched and merged as for a build, in the sandbox, but nothing is written.

        Args:
            tenant_id: Whose credentials and uploads are used.
            image: As for a build.
            policy: The one to try; None: the one in force.
            scratch: A fresh directory.

        Raises:
            IronError: the image cannot be had, or is none.
        """
        policy = policy or await self.policy(tenant_id)
        reference = self.reference(image)
        lines = policies.judge_reference(policy, reference)
        if lines[0].outcome is PolicyOutcome.REFUSED:
            why_not = "Not looked at: the image is not fetched from there."
            return policies.report(policy, lines, why_not), ""
        login = await self._reach.login(tenant_id, reference)
        resolved, pulled = await self._reach.resolve(tenant_id, reference, scratch, login)
        if reference.transport is Transport.REGISTRY:
            pulled = await self._reach.pull(
                tenant_id, reference, resolved, pulled, login=login, on_bytes=lambda _: None
            )
        opened = await self._open(pulled)
        lines += policies.judge_manifest(policy, opened.manifest)
        lines += policies.judge_config(policy, opened.config)
        digests = [layer.digest for layer in opened.manifest.layers]
        with self._reach.using(digests):
            try:
                made = await run_flatten(
                    self._plan(opened, policy, ""),
                    blobs=opened.blobs,
                    scratch=scratch,
                    on_step=lambda _step, _done, _total: None,
                    groups=self._groups,
                )
            except InvalidRequest as error:
                limit = policies.judge_refusal(error)
                if not limit:
                    raise
                why_not = "Not looked at: another limit was met before."
                return policies.report(policy, [*lines, *limit], why_not), resolved.digest
        lines += policies.judge_user(policy, opened.config, made.user_id)
        lines += policies.judge_tree(policy, made.findings, made.unpacked_bytes, made.file_count)
        return policies.report(policy, lines, ""), resolved.digest


def _refuse(policy: Policy, lines: Sequence[PolicyLine]) -> None:
    refusal = policies.refusal(lines)
    if refusal is not None:
        why_not = "Not reached: the image is refused before."
        raise Refused(refusal, policies.report(policy, lines, why_not))


def _least(wanted: int, limit: int) -> int:
    return min(wanted or limit, limit)
