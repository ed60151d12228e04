from __future__ import annotations

from dataclasses import dataclass, field

from ironworks.aggregatord.vms import Claim, Vms
from ironworks.gen.ironworks.common.v1 import common_pb
from ironworks.gen.ironworks.gatewayd.v1 import hosts_pb
from ironworks.gen.ironworks.metald.v1 import vm_pb
from ironworks.model.errors import InvalidRequest, NotFound, Unavailable
from ironworks.testkit.clock import FakeClock

HERE = "http://here:8080"


@dataclass
class Platform:
    """A gatewayd with hosts, one a page, and a metald that may be away."""

    urls: dict[str, str]
    tenants: dict[str, str]
    away: bool = False
    listed: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    async def list_hosts(self, request: hosts_pb.ListHostsRequest, /) -> hosts_pb.ListHostsResponse:
        self.listed += 1
        at = int(request.page.page_token or 0) if request.page else 0
        hosts = [hosts_pb.Host(host_id=one, metald_url=url) for one, url in self.urls.items()]
        token = str(at + 1) if at + 1 < len(hosts) else ""
        page = common_pb.PageInfo(next_page_token=token)
        return hosts_pb.ListHostsResponse(hosts=hosts[at : at + 1], page=page)

    def at(self, url: str) -> Host:
        return Host(self, url)


@dataclass
class Host:
    platform: Platform
    url: str

    async def get_vm(self, request: vm_pb.GetVmRequest, /) -> vm_pb.Vm:
        self.platform.asked.append((self.url, request.vm_id))
        if self.platform.away:
            raise Unavailable("Nobody is there.")
        if request.vm_id == "vm_odd":
            raise InvalidRequest("That is no id.")
        if request.vm_id not in self.platform.tenants:
            raise NotFound("There is no such VM.")
        return vm_pb.Vm(id=request.vm_id, tenant_id=self.platform.tenants[request.vm_id])


def platform() -> Platform:
    return Platform({"hst_a": "http://other", "hst_b": HERE}, {"vm_1": "tnt_a", "vm_2": "tnt_b"})


def claims(*vm_ids: str) -> set[Claim]:
    return {Claim(vm_id, "tnt_a") for vm_id in vm_ids}


async def test_a_vm_is_known_if_its_own_host_says_so() -> None:
    on = platform()
    vms = Vms(on, on.at, FakeClock())
    wanted = claims("vm_1", "vm_2", "vm_3", "vm_odd")
    assert await vms.unknown("hst_b", wanted) == wanted - claims("vm_1")
    assert {url for url, _ in on.asked} == {HERE}
    assert await vms.unknown("hst_b", claims("vm_1")) == set()
    assert on.listed == 2, "where hosts are is asked once"


async def test_while_a_host_is_away_none_of_its_vms_is_unknown() -> None:
    on, clock = platform(), FakeClock()
    on.away = True
    vms = Vms(on, on.at, clock)
    for _ in range(2):
        assert await vms.unknown("hst_b", claims("vm_3", "vm_4")) == set()
    assert on.asked == [(HERE, "vm_3")], "it is left alone for a while"
    on.away, on.urls["hst_b"] = False, "http://moved"
    await clock.advance(31)
    assert await vms.unknown("hst_b", claims("vm_3")) == claims("vm_3")
    assert on.asked[-1] == ("http://moved", "vm_3")


async def test_of_a_host_that_nobody_knows_nothing_is_said() -> None:
    on = platform()
    assert await Vms(on, on.at, FakeClock()).unknown("hst_c", claims("vm_3")) == set()
    assert on.asked == []


async def test_what_a_host_has_said_is_not_asked_again_at_every_report() -> None:
    on, clock = platform(), FakeClock()
    vms = Vms(on, on.at, clock)
    for _ in range(3):
        assert await vms.unknown("hst_b", claims("vm_1", "vm_3")) == claims("vm_3")
    assert on.asked == [(HERE, "vm_1"), (HERE, "vm_3")]
    await clock.advance(31)
    on.tenants["vm_3"] = "tnt_a"
    assert await vms.unknown("hst_b", claims("vm_1", "vm_3")) == set()
    assert on.asked[2:] == [(HERE, "vm_3")]


async def test_of_two_tenants_that_are_named_for_a_vm_one_is_wrong() -> None:
    on = platform()
    both = {Claim("vm_1", "tnt_a"), Claim("vm_1", "tnt_b")}
    assert await Vms(on, on.at, FakeClock()).unknown("hst_b", both) == {Claim("vm_1", "tnt_b")}
