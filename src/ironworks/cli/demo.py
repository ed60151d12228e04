"""`iron demo`: the main job on this machine: image → VM → endpoint → bill → nothing left.

It starts a platform of its own in a temporary directory and uses it as a developer of a tenant
would: the same API, the same SDK, the same `deploy` as `iron deploy`. If it is killed, the next run
finds and removes what it left.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from json import dumps as json_text
from pathlib import Path

from pyqwest import Client, HTTPTransport

from ironworks.cli.demo_story import (
    Facts,
    Story,
    completeness_rows,
    cost_rows,
    usage_rows,
)
from ironworks.cli.deploy import DeploySpec, absolute_image, deploy, local_path
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.billaged.v1 import meter_pb
from ironworks.gen.ironworks.billaged.v1.meter_connect import MeterServiceClient
from ironworks.gen.ironworks.gatewayd.v1 import roles_pb
from ironworks.machine import inventory, preflight
from ironworks.machine.platform import PlatformFile
from ironworks.machine.purge import purge
from ironworks.machine.temporary import make_directory, started, sweep
from ironworks.model.errors import Internal, IronError, Unavailable
from ironworks.model.money import Money
from ironworks.model.units import MIB, NS_PER_MS, NS_PER_SECOND
from ironworks.runtime.clock import Clock, SystemClock
from ironworks.runtime.rpc.client import our_errors
from ironworks.runtime.rpc.direct import DIRECT
from ironworks.runtime.settings import Settings, load
from ironworks.sdk import AsyncIronworks, DeployResult
from ironworks.testkit.images import build_sample_layout

METERED_SECONDS = 5.0
"""How long the demo lets the VM run under its eyes, so that there is something to bill."""

VM_MEMORY_BYTES = 256 * MIB
_PAGE_TRIES = 20
_PAGE_PERIOD_SECONDS = 0.25
_OK = 200


def image_roots(image: str | None) -> dict[str, str]:
    """The setting that lets builderd read a local image where it is; nothing for other images.

    The demo's platform is the caller's own, who is root: there is nobody to keep out.
    """
    path = local_path(image or "")
    return {} if path is None else {"IRONWORKS_LOCAL_IMAGE_ROOTS": json_text([str(path.parent)])}


class Demo:
    """One run: what it has found out, and how it tells."""

    def __init__(self, *, image: str | None, clock: Clock, story: Story) -> None:
        self.facts = Facts(image=image or "")
        self._image = image
        self._clock = clock
        self._story = story

    async def run(self) -> None:
        """All seven steps; whatever happens, nothing of it is left.

        Raises:
            IronError: a step failed; says which and why.
        """
        settings = load(Settings)
        story = self._story
        story.step(1, "This machine")
        preflight.check_root()
        for left in await sweep():
            story.say(f"removed what a demo that was killed had left: {left}")
        data_dir = make_directory("demo")
        try:
            preflight.check_all(data_dir, settings.guest_dir)
            story.say("Debian packages, Python environment and guest kernel are there")
            before = await inventory.take(data_dir)
            await self._with_platform(data_dir)
            await self._prove_clean(data_dir, before)
        finally:
            await asyncio.shield(purge(data_dir))

    async def _with_platform(self, data_dir: Path) -> None:
        story = self._story
        story.step(2, "The platform: supervisor, six services, Envoy")
        began_ns = self._clock.monotonic_ns()
        async with started(data_dir, image_roots(self._image)) as platform:
            took_ms = (self._clock.monotonic_ns() - began_ns) // NS_PER_MS
            story.say(f"ready in {took_ms / 1000:.1f} s at {platform.api_url}, state in {data_dir}")
            async with AsyncIronworks(data_dir=data_dir) as operator:
                await self._as_tenant(platform, operator)
            story.say("platform stopped")

    async def _as_tenant(self, platform: PlatformFile, operator: AsyncIronworks) -> None:
        story = self._story
        story.step(3, "A tenant, an API key, an image")
        tenant = await operator.tenants.create("demo")
        roles = [roles_pb.Role.OWNER]
        key = await operator.keys.create("demo", roles=roles, tenant_id=tenant.tenant_id)
        story.say(f"tenant {tenant.tenant_id}, API key {key.secret[:8]}…")
        if self._image is None:
            layout = Path(platform.data_dir) / "images" / "sample"
            self._image = self.facts.image = build_sample_layout(layout)
            story.say("sample image: an OCI layout around Debian's static busybox")
        story.say(f"image {self._image}")
        api = AsyncIronworks(platform.api_url, key.secret, platform.ca_file)
        async with api:
            began_ns = self._clock.now_ns()
            deployed = await self._deploy(api, operator)
            try:
                await self._visit(api, deployed)
                await self._bill(platform, operator, api, deployed, began_ns)
            finally:
                await self._delete(api, operator, deployed)

    async def _deploy(self, api: AsyncIronworks, operator: AsyncIronworks) -> DeployResult:
        story = self._story
        story.step(4, "Deploy")
        spec = DeploySpec(image=self._image or "", name="hello", memory_bytes=VM_MEMORY_BYTES)
        deployed = await deploy(api, spec, on_progress=story.say)
        vm = await operator.vms.get(deployed.vm_ids[0])
        facts = self.facts
        facts.digest, facts.build_ms = deployed.image_digest, deployed.build_ms
        facts.boot_ms = deployed.boot_ms
        facts.vmm, facts.accel = vm.driver, vm.accel
        story.say(f"image digest {deployed.image_digest}")
        story.say(f"build {deployed.build_ms} ms, boot {deployed.boot_ms} ms")
        story.say(f"VM {vm.id} runs on {vm.driver} with {vm.accel}")
        return deployed

    async def _visit(self, api: AsyncIronworks, deployed: DeployResult) -> None:
        """GET the page through Envoy; its routes are new, so a first try may come too early."""
        self._story.step(5, f"Visit {deployed.endpoint}")
        for _ in range(_PAGE_TRIES):
            with contextlib.suppress(Unavailable):
                answer = await api.endpoint_get(deployed.endpoint)
                self.facts.http_status = answer.status
                if answer.status < 500:  # noqa: PLR2004 - HTTP's own number
                    self._story.say(f"HTTP {answer.status}")
                    self._story.page(answer.text)
                    return
            await self._clock.sleep(_PAGE_PERIOD_SECONDS)
        raise Unavailable(
            f"{deployed.endpoint} does not answer.", hint="See the console of the VM."
        )

    async def _bill(
        self,
        platform: PlatformFile,
        operator: AsyncIronworks,
        api: AsyncIronworks,
        deployed: DeployResult,
        began_ns: int,
    ) -> None:
        story, facts, vm_ids = self._story, self.facts, list(deployed.vm_ids)
        story.step(6, "Meter and bill: a sample every 100 ms")
        await self._clock.sleep(METERED_SECONDS)
        await self._close_windows(platform, operator, vm_ids)
        from_ns, to_ns = began_ns, self._clock.now_ns() + NS_PER_SECOND
        measured = await api.usage.completeness(from_ns=from_ns, to_ns=to_ns, vm_ids=vm_ids)
        names = {vm_id: f"{vm_id[:11]}…" for vm_id in vm_ids}
        rows = completeness_rows(measured.vms, names)
        story.table("Samples", ["VM", "expected", "received", "missing"], rows)
        if measured.total is not None:
            facts.samples_expected = measured.total.expected
            facts.samples_received = measured.total.received
        usage = await api.usage.get(from_ns=from_ns, to_ns=to_ns, vm_ids=vm_ids)
        story.table("Usage", ["meter", "quantity"], usage_rows(usage.rows))
        invoice = await api.invoices.preview(from_ns=from_ns, to_ns=to_ns, vm_ids=vm_ids)
        columns = ["line", "quantity", "price", "amount"]
        story.table("Cost", columns, cost_rows(invoice))
        if invoice.total is None or not facts.samples_received:
            raise Internal("No sample of the VM reached the bill.")
        facts.currency = invoice.total.currency
        total = Money(invoice.total.nanos, invoice.total.currency)
        facts.cost = str(total).removesuffix(f" {facts.currency}")
        story.say(f"total {total}, price plan {invoice.price_plan_name}")

    async def _close_windows(
        self, platform: PlatformFile, operator: AsyncIronworks, vm_ids: list[str]
    ) -> None:
        """Close the minute's windows now; they are shipped and acknowledged when this returns."""
        request = meter_pb.FlushWindowsRequest(vm_ids=vm_ids)
        direct = Client(HTTPTransport(proxy=DIRECT))
        # billaged has no public route: an operator on its machine calls it directly.
        client = MeterServiceClient(platform.services["billaged"], http_client=direct)
        token = await operator.connection.token()
        with our_errors():
            await client.flush_windows(request, headers={"authorization": f"Bearer {token}"})

    async def _delete(
        self, api: AsyncIronworks, operator: AsyncIronworks, deployed: DeployResult
    ) -> None:
        self._story.step(7, "Delete everything, and look for what is left")
        job_id = await api.deployments.delete(deployed.deployment_id)
        await api.jobs.wait(job_id)
        request = asset_pb.ListLeasesRequest(state=asset_pb.LeaseState.ACTIVE)
        answer = await operator.connection.call(
            AssetServiceClient, AssetServiceClient.list_leases, request
        )
        held = [lease for lease in answer.leases if lease.holder in deployed.vm_ids]
        self.facts.leaks = len(held)
        self._story.say(f"deployment deleted; leases still held for it: {len(held)}")

    async def _prove_clean(self, data_dir: Path, before: frozenset[inventory.Item]) -> None:
        left = sorted(await inventory.take(data_dir) - before)
        for item in left:
            self._story.say(f"LEFT: {item}")
        self.facts.leaks = (self.facts.leaks or 0) + len(left)
        if self.facts.leaks:
            raise Internal(f"{self.facts.leaks} things were left behind.")
        kinds = "process, tap, bridge, namespace, cgroup, jail directory, mount or lease"
        self._story.say(f"no {kinds} is left")


@contextmanager
def _cancelled_by_signals(task: asyncio.Task[object] | None) -> Generator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: with everything cleaned up."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        if task is not None:
            loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _run(demo: Demo) -> None:
    with _cancelled_by_signals(asyncio.current_task()):
        await demo.run()


def demo(*, image: str | None = None, json: bool = False) -> None:
    """Run the main job end to end on this machine, then remove every trace of it.

    Args:
        image: An OCI reference, layout or archive; default: a small sample that is made here.
        json: End with one line of JSON.
    """
    clock = SystemClock()
    began_ns = clock.monotonic_ns()
    wanted = None if image is None else absolute_image(image, Path.cwd())
    run = Demo(image=wanted, clock=clock, story=Story())
    try:
        asyncio.run(_run(run))
        run.facts.ok = run.facts.http_status == _OK or image is not None
    except IronError as error:
        run.facts.error = str(error)
        raise
    except (KeyboardInterrupt, asyncio.CancelledError):
        run.facts.error = "interrupted"
        raise KeyboardInterrupt from None
    finally:
        run.facts.total_seconds = round((clock.monotonic_ns() - began_ns) / NS_PER_SECOND, 3)
        if json:
            sys.stdout.write(run.facts.line() + "\n")
            sys.stdout.flush()
