"""assetmanagerd for real: its process's composition on loopback, called by generated clients."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from protobuf import Oneof
from pyqwest import Client, HTTPTransport

from ironworks.assetmanagerd.service import compose
from ironworks.assetmanagerd.types import AssetSettings
from ironworks.gen.ironworks.assetmanagerd.v1 import asset_pb as pb
from ironworks.gen.ironworks.assetmanagerd.v1.asset_connect import AssetServiceClient
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.model.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from ironworks.runtime.identity import ServiceSigner, ensure_service_keys
from ironworks.runtime.rpc.client import Clients
from ironworks.runtime.service import make_chassis, run_service
from ironworks.runtime.tasks import Tasks

INITRD = gzip.compress(b"070701" + os.urandom(2_500_000), compresslevel=1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[AssetSettings]:
    ensure_service_keys(tmp_path)
    url = f"http://127.0.0.1:{free_port()}"
    settings = AssetSettings(data_dir=tmp_path, assetmanagerd_url=url, min_free_bytes=0)
    stop = asyncio.Event()
    async with Tasks() as tasks:
        serving = tasks.start(
            run_service(make_chassis("assetmanagerd", settings), compose, stop), name="service"
        )
        client = Client(HTTPTransport(proxy=()))
        for _ in range(3000):
            try:
                response = await client.execute("GET", f"{url}/readyz")
            except OSError:
                await asyncio.sleep(0.02)
            else:
                assert response.status == 200
                break
        yield settings
        stop.set()
        await serving


def client(settings: AssetSettings, service: str, tenant_id: str | None) -> AssetServiceClient:
    clock = make_chassis(service, settings).clock
    signer = ServiceSigner.load(settings.data_dir, service, settings.trust_domain, clock)
    clients = Clients(settings=settings, signer=signer)
    return clients.of(AssetServiceClient, "assetmanagerd", tenant_id=tenant_id)


def claim(body: bytes, kind: pb.AssetKind, **more: Any) -> pb.AssetFacts:
    return pb.AssetFacts(
        kind=kind, sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body), **more
    )


async def parts(
    facts: pb.AssetFacts, key: str, body: bytes, offset: int = 0
) -> AsyncIterator[pb.UploadAssetRequest]:
    start = pb.UploadStart(facts=facts, idempotency_key=key, offset_bytes=offset)
    yield pb.UploadAssetRequest(part=Oneof("start", start))
    for at in range(offset, len(body), 1 << 20):
        yield pb.UploadAssetRequest(part=Oneof("chunk", body[at : at + (1 << 20)]))


async def test_from_upload_to_the_jail_and_back(settings: AssetSettings) -> None:
    platform = client(settings, "metald", None)
    facts = claim(INITRD, pb.AssetKind.INITRD, platform=True, labels={"kernel": "6.1"})
    uploaded = await platform.upload_asset(parts(facts, "initrd", INITRD))
    assert uploaded.asset is not None
    asset_id = uploaded.asset.asset_id
    assert uploaded.asset.state is pb.AssetState.AVAILABLE
    assert uploaded.asset.format is pb.AssetFormat.CPIO_GZIP
    again = await platform.upload_asset(parts(facts, "again", INITRD))
    assert again.existed
    assert again.asset is not None
    assert again.asset.asset_id == asset_id

    metald = client(settings, "metald", "tnt_acme")
    chosen = await metald.query_asset(
        pb.QueryAssetRequest(
            filter=pb.AssetFilter(kind=pb.AssetKind.INITRD, labels={"kernel": "6.1"})
        )
    )
    assert chosen.asset is not None
    assert chosen.asset.asset_id == asset_id
    leased = await metald.acquire_lease(
        pb.AcquireLeaseRequest(asset_ids=[asset_id], holder="vm_1", idempotency_key="vm_1")
    )
    assert leased.lease is not None
    jail = settings.data_dir / "jails" / "vm_1"
    jail.mkdir(parents=True)
    prepare = pb.PrepareAssetsRequest(
        lease_id=leased.lease.lease_id,
        directory=str(jail),
        files=[pb.PreparedFile(asset_id=asset_id, file_name="initrd.img")],
    )
    placed = await metald.prepare_assets(prepare)
    assert placed.files[0].method is pb.PrepareMethod.HARD_LINK
    assert (jail / "initrd.img").read_bytes() == INITRD
    assert (jail / "initrd.img").stat().st_mode & 0o222 == 0

    released = await metald.release_lease(pb.ReleaseLeaseRequest(lease_id=leased.lease.lease_id))
    assert released.lease is not None
    assert released.lease.state is pb.LeaseState.RELEASED
    with pytest.raises(FailedPrecondition, match="released"):
        await metald.prepare_assets(prepare)


async def test_a_broken_upload_goes_on_where_it_stopped(settings: AssetSettings) -> None:
    tenant = client(settings, "metald", "tnt_acme")
    facts = claim(INITRD, pb.AssetKind.INITRD)
    half = INITRD[: len(INITRD) // 2]
    with pytest.raises(FailedPrecondition, match="ended at"):
        await tenant.upload_asset(parts(facts, "k", half))
    stands = await tenant.get_upload(pb.GetUploadRequest(idempotency_key="k"))
    assert stands.offset_bytes == len(half)
    with pytest.raises(FailedPrecondition, match="not at 7"):
        await tenant.upload_asset(parts(facts, "k", INITRD, offset=7))
    done = await tenant.upload_asset(parts(facts, "k", INITRD, offset=len(half)))
    assert done.asset is not None
    assert done.asset.state is pb.AssetState.AVAILABLE


async def test_wrong_bytes_are_refused_and_leave_nothing(settings: AssetSettings) -> None:
    tenant = client(settings, "metald", "tnt_acme")
    facts = claim(INITRD, pb.AssetKind.INITRD)
    with pytest.raises(InvalidRequest, match="SHA-256"):
        await tenant.upload_asset(parts(facts, "k", bytes(len(INITRD))))
    assert list((settings.data_dir / "assets" / "staging").iterdir()) == []


async def test_tenants_do_not_see_each_other(settings: AssetSettings) -> None:
    acme = client(settings, "metald", "tnt_acme")
    evil = client(settings, "metald", "tnt_evil")
    facts = claim(INITRD, pb.AssetKind.INITRD)
    mine = await acme.upload_asset(parts(facts, "k", INITRD))
    assert mine.asset is not None
    asset_id = mine.asset.asset_id
    unknown = asset_id[:-1] + ("0" if asset_id[-1] != "0" else "1")
    answers: list[str] = []
    for wanted in (asset_id, unknown):
        with pytest.raises(NotFound) as caught:
            await evil.get_asset(pb.GetAssetRequest(asset_id=wanted))
        answers.append(str(caught.value).replace(wanted, "ID"))
    assert answers[0] == answers[1]
    with pytest.raises(NotFound):
        await evil.acquire_lease(pb.AcquireLeaseRequest(asset_ids=[asset_id], holder="x"))
    assert (await evil.list_assets(pb.ListAssetsRequest())).assets == []
    theirs = await evil.upload_asset(parts(facts, "k", INITRD))
    assert theirs.asset is not None
    assert theirs.asset.asset_id != asset_id
    assert not theirs.existed


async def test_a_watch_goes_on_from_its_own_position_only(settings: AssetSettings) -> None:
    acme = client(settings, "builderd", "tnt_acme")
    evil = client(settings, "builderd", "tnt_evil")

    async def told(after: str, count: int) -> list[pb.WatchAssetsResponse]:
        stream = acme.watch_assets(pb.WatchAssetsRequest(after=after))
        async with aclosing(cast("AsyncGenerator[pb.WatchAssetsResponse]", stream)) as changes:
            return [await anext(changes) for _ in range(count)]

    begin = (await told("", 1))[0]
    assert begin.event is None
    for who, body in ((acme, INITRD), (evil, INITRD), (acme, INITRD[:-1] + b"x")):
        claimed = claim(body, pb.AssetKind.INITRD)
        await who.upload_asset(parts(claimed, claimed.sha256, body))
    changes = (await told(begin.position, 5))[1:]
    states = [(one.event.asset_id, one.event.to_state) for one in changes if one.event]
    assert [state for _, state in states] == [pb.AssetState.REGISTERED, pb.AssetState.AVAILABLE] * 2
    assert len({asset_id for asset_id, _ in states}) == 2
    rest = await told(changes[1].position, 3)
    assert [one.event and one.event.asset_id for one in rest[1:]] == [states[2][0]] * 2
    with pytest.raises(InvalidRequest, match="not a position that this tenant was told"):
        await anext(evil.watch_assets(pb.WatchAssetsRequest(after=begin.position)))

    ask = pb.ListAssetEventsRequest(asset_id=states[0][0], page=common_pb.PageRequest(page_size=1))
    gatewayd = client(settings, "gatewayd", "tnt_acme")
    first = await gatewayd.list_asset_events(ask)
    assert first.page is not None
    token = first.page.next_page_token
    ask.page = common_pb.PageRequest(page_size=1, page_token=token)
    second = await gatewayd.list_asset_events(ask)
    assert second.page is not None
    assert not second.page.next_page_token
    assert [one.to_state for one in (*first.events, *second.events)] == [
        pb.AssetState.REGISTERED,
        pb.AssetState.AVAILABLE,
    ]


async def test_only_metald_may_place_files(settings: AssetSettings) -> None:
    builderd = client(settings, "builderd", "tnt_acme")
    with pytest.raises(PermissionDenied):
        await builderd.prepare_assets(pb.PrepareAssetsRequest(lease_id="x"))
