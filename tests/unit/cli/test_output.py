"""What commands write."""

from __future__ import annotations

import json

import pytest

from ironworks.cli.output import Output, duration, printable, when
from ironworks.gen.ironworks.gatewayd.v1 import tenants_pb
from ironworks.sdk import Page

TENANT = tenants_pb.Tenant(
    tenant_id="tnt_01jd8v3q6m5k8n0p2r4t6v8x0z",
    name="acme",
    state=tenants_pb.TenantState.ACTIVE,
    created_at_ns=1_795_433_424_123_456_789,
)


def test_json_has_the_names_of_the_proto_and_exact_integers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(json=True).fields(TENANT, {})
    shown = json.loads(capsys.readouterr().out)
    assert shown["created_at_ns"] == "1795433424123456789"
    assert shown["state"] == "TENANT_STATE_ACTIVE"
    assert shown["display_name"] == ""


def test_a_list_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).listing("tenants", Page((TENANT, TENANT), "more"), (), lambda one: ())
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["tenants"]) == 2
    assert shown["next_page_token"] == "more"


def test_a_table_cuts_no_id_and_takes_nothing_for_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(json=False).table(("A", "B"), [[TENANT.tenant_id * 3, "[red]x[/red]"]])
    out = capsys.readouterr().out
    assert TENANT.tenant_id * 3 in out
    assert "[red]x[/red]" in out


def test_a_list_without_items_and_one_with_more_say_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = Output(json=False)
    out.listing("api_keys", Page[tenants_pb.Tenant](()), ("A",), lambda one: (one.name,))
    assert capsys.readouterr().err == "No API keys.\n"
    out.listing("tenants", Page((TENANT,), "more"), ("A",), lambda one: (one.name,))
    assert "there are more" in capsys.readouterr().err


def test_control_characters_never_reach_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\r"
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(printable(evil))
    out = Output(json=False)
    out.say(evil)
    out.plain(evil)
    out.table(("A",), [[evil]])
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err


def test_times_and_durations_for_people() -> None:
    assert when(0) == "-"
    assert when(TENANT.created_at_ns) == "2026-11-23 11:30:24"
    assert duration(350_000_000) == "350 ms"
    assert duration(3_440_000_000) == "3.4 s"
