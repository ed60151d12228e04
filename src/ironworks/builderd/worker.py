"""Run one build from its reference to its asset.

A build can be taken up any number of times: it begins again at RESOLVING, in a fresh scratch
directory; blobs that were pulled before are still in the tenant's store.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog
from sqlalchemy import Connection

from ironworks.builderd import store
from ironworks.builderd.changes import Changes
from ironworks.builderd.decide import fail, move, reuse_key, take_up
from ironworks.builderd.flatten.plan import Flattened, Layer, Limits, Plan
from ironworks.builderd.sandbox import run_flatten
from ironworks.builderd.sources.documents import host_architecture, read_config, read_manifest
from ironworks.builderd.sources.local import (
    check_blob,
    classify,
    locate,
    read_blob,
    resolve_layout,
)
from ironworks.builderd.sources.skopeo import PULLS, Skopeo
from ironworks.builderd.types import (
    BUILDER_VERSION,
    Build,
    BuilderSettings,
    BuildResult,
    BuildState,
    ImageConfig,
    ImageReference,
    Progress,
    Pulled,
    Resolved,
    Transport,
)
from ironworks.model.errors import (
    Aborted,
    DeadlineExceeded,
    Internal,
    IronError,
    NotFound,
    ResourceExhausted,
)
from ironworks.model.units import NS_PER_MS, format_bytes
from ironworks.runtime.clock import Clock
from ironworks.runtime.resilience import call
from ironworks.storage.sql import Database

_log = structlog.stdlib.get_logger()


class AssetRegistry(Protocol):
    """What builderd needs of assetmanagerd."""

    async def is_usable(self, tenant_id: str, asset_id: str) -> bool:
        """Whether the asset can be leased."""
        ...

    async def register(
        self, build: Build, made: Flattened, config: ImageConfig, staged_name: str
    ) -> str:
        """Hand bytes over; answers the id of the asset, which is AVAILABLE then."""
        ...


class _KeyLocks:
    """One lock per key, for as long as somebody wants it."""

    def __init__(self) -> None:
        self._locks: dict[tuple[str, ...], tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def held(self, key: tuple[str, ...]) -> AsyncGenerator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)


class Worker:
    """Runs builds; `parse` takes references apart."""

    def __init__(
        self,
        *,
        name: str,
        database: Database,
        assets: AssetRegistry,
        changes: Changes,
        settings: BuilderSettings,
        clock: Clock,
        parse: Callable[[str], ImageReference],
    ) -> None:
        self._name = name
        self._database = database
        self._assets = assets
        self._changes = changes
        self._settings = settings
        self._clock = clock
        self._parse = parse
        self._same = _KeyLocks()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._skopeo = Skopeo(
            insecure_registries=settings.insecure_registries,
            file_bytes=settings.max_packed_bytes,
        )

    @property
    def scratch_dir(self) -> Path:
        """Where builds have their scratch directories."""
        return self._settings.builder_dir / "scratch"

    @property
    def _store_dir(self) -> Path:
        """Where each tenant has the blobs that were pulled for it."""
        return self._settings.builder_dir / "blobs"

    @property
    def is_idle(self) -> bool:
        """Whether no build runs here."""
        return not self._running

    def clean(self) -> int:
        """Remove what builds of an earlier life left; answers how many. Blocks."""
        self.scratch_dir.mkdir(parents=True, exist_ok=True)
        left = [*self.scratch_dir.iterdir(), *self._store_dir.glob(f"*/{PULLS}/*")]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return len(left)

    def stop(self, build_id: str) -> None:
        """Interrupt a build that runs here; what it had is removed, its record is not changed."""
        task = self._running.get(build_id)
        if task is not None:
            task.cancel()

    async def run(self, build_id: str) -> None:
        """Run a build to its end. Returns when it has ended, in whichever way.

        A second call while it runs waits for the first; a call after its end does nothing.
        """
        running = self._running.get(build_id)
        if running is not None:
            await asyncio.wait({running})
            return
        task = asyncio.current_task()
        if task is None:
            raise Internal("A build ran outside of a task.")
        self._running[build_id] = task
        scratch = self.scratch_dir / build_id
        try:
            await self._run(build_id, scratch)
        except asyncio.CancelledError:
            build = await asyncio.shield(self._find(build_id))
            if build is not None and not build.ended:
                raise  # the service stops; its next life takes the build up again
            task.uncancel()
        finally:
            del self._running[build_id]
            self._changes.forget(build_id)
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _run(self, build_id: str, scratch: Path) -> None:
        waiting = await self._find(build_id)
        if waiting is None or waiting.ended:
            return
        build = waiting
        try:
            await asyncio.to_thread(_make_empty, scratch)
            build = await self._write(
                build, lambda now: take_up(waiting, self._name, now), f"Taken up by {self._name}."
            )
            async with asyncio.timeout(build.timeout_seconds):
                await self._stages(build, scratch)
        except TimeoutError:
            await self._fail(
                build_id,
                scratch,
                DeadlineExceeded(
                    f"The build did not end within {build.timeout_seconds} seconds.",
                    hint="Make the image smaller, or ask the operator for more time.",
                ),
            )
        except Aborted:
            _log.info("build_overtaken", build=build_id)  # cancelled meanwhile
        except IronError as error:
            await self._fail(build_id, scratch, error)
        except OSError as error:
            await self._fail(build_id, scratch, _of_os(error))
        except Exception:  # noqa: BLE001 - logged, and told as a fault of ours
            # It must not be taken up again for ever.
            _log.exception("build_crashed", build=build_id)
            fault = Internal("The build failed unexpectedly.", hint="See builderd's log.")
            await self._fail(build_id, scratch, fault)

    async def _fail(self, build_id: str, scratch: Path, error: IronError) -> None:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        build = await self._find(build_id)
        if build is None or build.ended:
            return
        context = {f"ctx_{key}": value for key, value in error.context.items()}
        _log.info("build_failed", build=build_id, code=error.code, error=str(error), **context)
        await self._write(build, lambda now: fail(build, error, now), f"Failed: {error}")

    # --- stages -----------------------------------------------------------------------------------

    async def _stages(self, build: Build, scratch: Path) -> None:
        reference = self._parse(build.image)
        resolved, pulled = await self.resolve(reference, scratch)
        build = await self._note(
            build,
            lambda _: replace(
                build,
                image_digest=resolved.digest,
                index_digest=resolved.index_digest,
                platform=f"linux/{host_architecture()}",
            ),
            f"{build.image} is {resolved.digest}.",
        )
        # Whoever asks for the same meanwhile waits here, and then finds it made.
        async with self._same.held(reuse_key(build)):
            made = None if build.force else await self.find_made(build)
            if made is not None:
                await self.reuse(build, made, scratch)
            else:
                await self._make(build, reference, resolved, pulled, scratch)

    async def resolve(
        self, reference: ImageReference, scratch: Path
    ) -> tuple[Resolved, Pulled | None]:
        """What a reference means, and the image itself where it is here already.

        Raises:
            IronError: there is no such image, or none for this platform.
        """
        if reference.transport is Transport.REGISTRY:
            return await call(lambda: self._skopeo.resolve(reference), clock=self._clock), None
        path = await asyncio.to_thread(locate, reference, self._settings.image_roots())
        kind = reference.transport
        if kind is Transport.PATH:
            kind = await asyncio.to_thread(classify, path)
        elif kind is Transport.LAYOUT:
            await asyncio.to_thread(classify, path)
        elif not path.is_file():
            raise NotFound(f"There is no archive at {reference.location}.")
        if kind is Transport.LAYOUT:
            return await asyncio.to_thread(resolve_layout, path, reference.name)
        return await self._skopeo.unpack_archive(
            path,
            kind,
            reference.name,
            scratch=scratch,
            timeout_seconds=self._settings.build_timeout_seconds,
        )

    async def find_made(self, build: Build) -> Build | None:
        """An earlier build of the tenant whose result serves this one too."""
        made = await self._database.read(
            lambda connection: store.find_made(
                connection, build.tenant_id, build.image_digest, build.format, BUILDER_VERSION
            )
        )
        if made is None or made.result is None:
            return None
        usable = await self._assets.is_usable(build.tenant_id, made.result.asset_id)
        return made if usable else None

    async def reuse(self, build: Build, made: Build, scratch: Path) -> Build:
        """Complete a build with an earlier one's result."""
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        return await self._write(
            build,
            lambda now: replace(
                move(build, BuildState.COMPLETED, now),
                result=made.result,
                reused_build_id=made.build_id,
            ),
            f"Built before, by {made.build_id}.",
        )

    async def _make(
        self,
        build: Build,
        reference: ImageReference,
        resolved: Resolved,
        pulled: Pulled | None,
        scratch: Path,
    ) -> None:
        build = await self._enter(build, BuildState.PULLING, "Fetching the image.")
        if pulled is None:
            pulled = await call(
                lambda: self._pull(build, reference, resolved, scratch), clock=self._clock
            )
        limits = self._settings
        manifest = read_manifest(
            pulled.manifest,
            max_layers=limits.max_image_layers,
            max_packed_bytes=limits.max_packed_bytes,
        )
        config_bytes = await asyncio.to_thread(read_blob, pulled.blobs, manifest.config)
        config, diff_ids = read_config(config_bytes, len(manifest.layers))
        blobs = [
            await asyncio.to_thread(check_blob, pulled.blobs, layer) for layer in manifest.layers
        ]
        packed_bytes = sum(layer.size_bytes for layer in manifest.layers)
        build = await self._enter(
            build,
            BuildState.BUILDING,
            f"Merging {len(blobs)} layers of {format_bytes(packed_bytes)}.",
        )
        plan = Plan(
            layers=tuple(
                Layer(
                    path=f"/blobs/{index}",
                    digest=layer.digest,
                    size_bytes=layer.size_bytes,
                    diff_id=diff_id,
                )
                for index, (layer, diff_id) in enumerate(
                    zip(manifest.layers, diff_ids, strict=True)
                )
            ),
            output="/scratch/rootfs",
            scratch="/scratch",
            format=build.format.value,
            limits=Limits(
                unpacked_bytes=limits.max_unpacked_bytes,
                file_count=limits.max_image_files,
                path_bytes=limits.max_path_bytes,
                free_bytes=limits.min_free_bytes,
            ),
            processors=limits.build_processors,
        )
        made = await run_flatten(
            plan, blobs=blobs, scratch=scratch, on_step=self._reporter(build.build_id)
        )
        await self._register(build, made, config, scratch, len(blobs))

    async def _pull(
        self, build: Build, reference: ImageReference, resolved: Resolved, scratch: Path
    ) -> Pulled:
        return await self._skopeo.pull(
            reference,
            resolved,
            scratch=scratch,
            store=self._store_dir / build.tenant_id,
            timeout_seconds=build.timeout_seconds,
        )

    async def _register(
        self, build: Build, made: Flattened, config: ImageConfig, scratch: Path, layer_count: int
    ) -> None:
        build = await self._enter(
            build,
            BuildState.VALIDATING,
            f"Wrote {format_bytes(made.size_bytes)}: {made.file_count} files of "
            f"{format_bytes(made.unpacked_bytes)}.",
        )
        size_bytes = (await asyncio.to_thread((scratch / "rootfs").stat)).st_size
        if size_bytes != made.size_bytes or made.file_count == 0:
            raise Internal("The file system that was written is not there, or empty.")
        build = await self._enter(build, BuildState.REGISTERING, "Handing the bytes over.")
        staged_name = f"{build.build_id}.rootfs"

        async def hand_over() -> str:
            # An attempt that died half-way may have taken the file already.
            if (scratch / "rootfs").exists():
                (scratch / "rootfs").replace(self._settings.staging_dir / staged_name)
            return await self._assets.register(build, made, config, staged_name)

        asset_id = await call(hand_over, clock=self._clock)
        # Who sees that the build has ended finds nothing of it left.
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        result = BuildResult(
            asset_id=asset_id,
            sha256=made.sha256,
            size_bytes=made.size_bytes,
            unpacked_bytes=made.unpacked_bytes,
            file_count=made.file_count,
            layer_count=layer_count,
            image_config=config,
        )
        took_ms = (self._clock.now_ns() - build.created_at_ns) // NS_PER_MS
        await self._write(
            build,
            lambda now: replace(move(build, BuildState.COMPLETED, now), result=result),
            f"Asset {asset_id} is available, {took_ms} ms after the build was asked for.",
        )

    # --- records ----------------------------------------------------------------------------------

    def _reporter(self, build_id: str) -> Callable[[str, int], None]:
        def report(step: str, done_bytes: int) -> None:
            self._changes.report(build_id, Progress(step=step, done_bytes=done_bytes))

        return report

    async def _enter(self, build: Build, state: BuildState, text: str) -> Build:
        return await self._write(build, lambda now: move(build, state, now), text)

    async def _note(self, build: Build, change: Callable[[int], Build], text: str) -> Build:
        return await self._write(build, change, text)

    async def _write(self, before: Build, change: Callable[[int], Build], text: str) -> Build:
        now_ns = self._clock.now_ns()

        def work(connection: Connection) -> Build:
            after = store.change_build(connection, before, change(now_ns), now_ns)
            store.append_log(connection, before.build_id, after.state, text, now_ns)
            return after

        after = await self._database.write(work)
        self._changes.forget(before.build_id)
        return after

    async def _find(self, build_id: str) -> Build | None:
        """The record; None if it has been deleted meanwhile."""
        return await self._database.read(lambda connection: store.read_build(connection, build_id))


def _make_empty(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, mode=0o700)


def _of_os(error: OSError) -> IronError:

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(
            "There is no room on the disk to build this image.",
            hint="Free space in the data directory, then deploy again.",
        )
    return Internal("The build failed on this machine.", context={"error": str(error)})
