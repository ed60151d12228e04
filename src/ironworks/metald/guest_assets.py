"""Registers the kernel and initrd that this host built as the platform's assets."""

import asyncio
from dataclasses import replace

from ironworks.metald.app.context import Context, log
from ironworks.metald.guest.build import find
from ironworks.model.errors import FailedPrecondition
from ironworks.model.units import NS_PER_SECOND
from ironworks.runtime.reconcile import Report

PERIOD_SECONDS = 1.0
"""Often, so that a platform that is just starting takes VMs as soon as assetmanagerd is up."""
LOOK_AGAIN_SECONDS = 30.0


class GuestAssets:
    """Finds the built guest, registers it, and makes it the host's default."""

    def __init__(self, context: Context) -> None:
        """Work for the host of `context`."""
        self._context = context
        self._registered = ""
        self._looked_at_ns = 0

    async def activate(self) -> Report:
        """Register the newest guest unless that is done.

        Raises:
            FailedPrecondition: there is none.
        """
        context = self._context
        if not context.probe.capabilities.needs_kernel:
            return Report()
        now_ns = context.clock.monotonic_ns()
        again_ns = int(LOOK_AGAIN_SECONDS * NS_PER_SECOND)
        if self._registered and now_ns - self._looked_at_ns < again_ns:
            return Report()
        guest = await asyncio.to_thread(find, context.settings.guest_dir)
        if guest is None:
            raise FailedPrecondition(
                f"There is no guest kernel in {context.settings.guest_dir}.",
                hint="Run `./iron setup`, which builds it.",
            )
        identity = guest.kernel.sha256 + guest.initrd.sha256
        if identity == self._registered:
            self._looked_at_ns = now_ns
            return Report(counts={"registered": 0})
        kernel_id = await context.lessor.register_platform(
            guest.directory / guest.kernel.name, "kernel", guest.kernel.sha256
        )
        initrd_id = await context.lessor.register_platform(
            guest.directory / guest.initrd.name, "initrd", guest.initrd.sha256
        )
        host = replace(
            context.host,
            default_kernel_asset_id=kernel_id,
            default_initrd_asset_id=initrd_id,
        )
        await context.write_host(host)
        self._registered, self._looked_at_ns = identity, now_ns
        log.info("guest_registered", kernel=kernel_id, initrd=initrd_id)
        return Report(counts={"registered": 2})
