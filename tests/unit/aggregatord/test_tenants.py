from __future__ import annotations

from dataclasses import dataclass, field

from ironworks.aggregatord.tenants import Tenants
from ironworks.gen.ironworks.gatewayd.v1 import tenants_pb
from ironworks.model.errors import NotFound, Unavailable
from ironworks.testkit.clock import FakeClock


@dataclass
class Directory:
    there: set[str]
    away: bool = False
    asked: list[str] = field(default_factory=list[str])

    async def get_tenant(
        self, request: tenants_pb.GetTenantRequest, /
    ) -> tenants_pb.GetTenantResponse:
        self.asked.append(request.tenant_id)
        if self.away:
            raise Unavailable("Nobody is there.")
        if request.tenant_id not in self.there:
            raise NotFound("There is no such tenant.")
        return tenants_pb.GetTenantResponse()


async def test_who_exists_is_asked_for_once_and_who_does_not_every_time() -> None:
    directory = Directory({"tnt_a"})
    tenants = Tenants(directory, FakeClock())
    for _ in range(2):
        assert await tenants.unknown(["tnt_a", "tnt_b"]) == {"tnt_b"}
    assert directory.asked == ["tnt_a", "tnt_b", "tnt_b"]
    assert tenants.unsure(["tnt_a", "tnt_b"]) == {"tnt_b"}


async def test_while_gatewayd_is_away_nobody_is_unknown_and_it_is_left_alone() -> None:
    directory, clock = Directory(set(), away=True), FakeClock()
    tenants = Tenants(directory, clock)
    assert await tenants.unknown(["tnt_a", "tnt_b"]) == set()
    assert await tenants.unknown(["tnt_a"]) == set()
    assert directory.asked == ["tnt_a"]
    directory.away = False
    await clock.advance(31)
    assert await tenants.unknown(["tnt_a"]) == {"tnt_a"}


async def test_without_a_gatewayd_everybody_exists() -> None:
    tenants = Tenants(None, FakeClock())
    assert tenants.unsure(["tnt_a"]) == set()
    assert await tenants.unknown(["tnt_a"]) == set()
