"""`iron` as a process against a platform in memory: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb
from ironworks.model.errors import Unavailable
from ironworks.testkit.fakeapi import OPERATOR_KEY, TENANT_KEY, FakeApi, running


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


class Iron:
    """Runs commands as one user of one platform."""

    def __init__(self, api: FakeApi, url: str, home: Path) -> None:
        self.api = api
        self.home = home
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "IRONWORKS_API_URL": url,
            "IRONWORKS_API_KEY": TENANT_KEY,
            "IRONWORKS_DATA_DIR": str(home / "none"),
        }

    async def __call__(self, *arguments: str, stdin: str = "", **env: str) -> Done:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ironworks.cli",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={key: value for key, value in {**self.env, **env}.items() if value},
            cwd=self.home,
        )
        out, err = await process.communicate(stdin.encode())
        done = Done(process.returncode or 0, out.decode(), err.decode())
        assert "Traceback" not in done.err, done.err
        return done


@pytest.fixture
async def iron(tmp_path: Path) -> AsyncIterator[Iron]:
    async with running(tmp_path / "data") as (api, settings):
        home = tmp_path / "home"
        home.mkdir()
        yield Iron(api, settings.gatewayd_url, home)


async def test_deploy_shows_stages_and_ends_with_the_endpoint(iron: Iron) -> None:
    done = await iron(
        "deploy", "oci:/srv/layout", "--name", "web", "--env", "A=b", "--memory", "1GiB"
    )
    assert done.status == 0, done.err
    assert "building   done in" in done.err
    assert "https://web-0123456789.ironworks.localhost:8443/" in done.out
    spec = iron.api.deployments["web"].spec
    assert spec is not None
    assert spec.image == "oci:/srv/layout"
    assert spec.env == {"A": "b"}


async def test_deploy_as_json_ends_with_one_object(iron: Iron) -> None:
    done = await iron("deploy", "oci:/x", "--name", "web", "--json")
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert done.json["boot_ms"] == 3400
    assert done.json["endpoint"].startswith("https://web-")


async def test_deploy_detached_and_watched(iron: Iron) -> None:
    accepted = await iron("deploy", "oci:/x", "--name", "web", "--detach", "--json")
    watched = await iron("job", "watch", accepted.json["job_id"], "--json")
    assert watched.status == 0, watched.err
    lines = [json.loads(line) for line in watched.out.splitlines()]
    assert lines[0]["state"] == "JOB_STATE_QUEUED"
    assert lines[-1]["state"] == "JOB_STATE_COMPLETED"
    shown = await iron("job", "get", accepted.json["job_id"])
    assert "completed" in shown.out


async def test_a_failed_deployment_ends_with_the_failures_status(iron: Iron) -> None:
    iron.api.failure = jobs_pb.JobFailure(
        code="not_found", message="There is no image x. Check the reference."
    )
    done = await iron("deploy", "x", "--name", "web", "--json")
    assert done.status == 66
    assert done.json["error"]["code"] == "not_found"
    assert done.err.endswith("iron: There is no image x. Check the reference.\n")


async def test_a_name_that_is_taken(iron: Iron) -> None:
    assert (await iron("deploy", "oci:/x", "--name", "web")).status == 0
    again = await iron("deploy", "oci:/x", "--name", "web")
    assert again.status == 67
    assert again.err == "iron: There is a deployment named web. Choose another.\n"


async def test_the_operators_nouns(iron: Iron) -> None:
    iron.env["IRONWORKS_API_KEY"] = OPERATOR_KEY
    tenant = (await iron("tenant", "create", "acme", "--json")).json
    key = await iron("key", "create", "ci", "--tenant", "acme", "--role", "owner", "--role",
                     "billing", "--json")  # fmt: skip
    assert key.json["secret"].startswith("iwk_")
    assert key.json["api_key"]["tenant_id"] == tenant["tenant_id"]
    assert key.json["api_key"]["roles"] == ["ROLE_OWNER", "ROLE_BILLING"]
    listed = await iron("tenant", "list")
    assert tenant["tenant_id"] in listed.out
    hosts = await iron("host", "list", "--json")
    assert hosts.json["hosts"][0]["acceleration"] == "tcg"
    nobody = await iron("key", "create", "ci", "--tenant", "nobody")
    assert (nobody.status, nobody.out) == (66, "")


async def test_a_secret_is_for_people_on_standard_output_with_a_warning_beside_it(
    iron: Iron,
) -> None:
    done = await iron("key", "create", "ci")
    assert "iwk_" + "s" * 43 in done.out
    assert "cannot show it again" in done.err


async def test_login_remembers_a_key_that_works(iron: Iron) -> None:
    url = iron.env["IRONWORKS_API_URL"]
    nothing = {"IRONWORKS_API_URL": "", "IRONWORKS_API_KEY": ""}
    assert (await iron("tenant", "list", **nothing)).status == 68
    wrong = await iron("login", url, stdin="iwk_wrong\n", **nothing)
    assert wrong.status == 76
    assert not (iron.home / ".config").exists()
    right = await iron("login", url, "--json", stdin=f"{OPERATOR_KEY}\n", **nothing)
    assert right.status == 0, right.err
    assert right.json["roles"] == ["ROLE_OPERATOR"]
    path = iron.home / ".config" / "ironworks" / "config.toml"
    assert path.stat().st_mode & 0o077 == 0
    assert (await iron("tenant", "list", **nothing)).status == 0


async def test_a_platform_that_is_away_is_69(iron: Iron) -> None:
    done = await iron("deployment", "list", IRONWORKS_API_URL="http://127.0.0.1:9")
    assert done.status == 69
    assert done.err.startswith("iron: http://127.0.0.1:9 does not answer.")


async def test_a_restart_of_the_platform_is_ridden_out(iron: Iron) -> None:
    iron.api.fail("CreateDeployment", Unavailable("restarting"), times=2, after=True)
    iron.api.breaks = 1
    done = await iron("deploy", "oci:/x", "--name", "web", "--json")
    assert done.status == 0, done.err
    assert len(set(iron.api.idempotency_keys("CreateDeployment"))) == 1


async def test_a_reader_that_goes_away_is_no_fault(iron: Iron) -> None:
    iron.env["IRONWORKS_API_KEY"] = OPERATOR_KEY
    command = f"{sys.executable} -m ironworks.cli tenant list --json | true"
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command, stderr=asyncio.subprocess.PIPE, env=iron.env
    )
    _, err = await process.communicate()
    assert err == b""


async def test_an_interrupted_deployment_goes_on_and_says_so(iron: Iron) -> None:
    iron.api.fail("WatchJob", Unavailable("away"), times=1000)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ironworks.cli",
        "deploy",
        "oci:/x",
        "--name",
        "web",
        stderr=asyncio.subprocess.PIPE,
        env=iron.env,
    )
    for _ in range(1000):
        if iron.api.asked["WatchJob"]:
            break
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    job_id = next(iter(iron.api.jobs))
    assert process.returncode == 130
    assert f"The job goes on: `iron job watch {job_id}` follows it.\n" in err.decode()
    assert err.decode().endswith("iron: Interrupted.\n")
