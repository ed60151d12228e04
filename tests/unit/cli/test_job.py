"""`iron job`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ironworks.gen.ironworks.gatewayd.v1 import jobs_pb

if TYPE_CHECKING:
    from conftest import Iron


async def test_get_list_and_watch(iron: Iron) -> None:
    accepted = await iron("deploy", "oci:/x", "--name", "web", "--detach", "--json")
    job_id = accepted.json["job_id"]
    assert "queued" in (await iron("job", "get", job_id)).out
    done = await iron("job", "watch", job_id)
    assert "booting    done in" in done.err
    assert "completed" in done.out
    listed = await iron("job", "list", "--about", "dep_x")
    assert job_id in listed.out
    await iron("job", "get", "job_none", status=66)


async def test_watching_a_job_that_fails_fails(iron: Iron) -> None:
    accepted = await iron("deploy", "oci:/x", "--name", "web", "--detach", "--json")
    iron.api.failure = jobs_pb.JobFailure(code="resource_exhausted", message="No host has room.")
    done = await iron("job", "watch", accepted.json["job_id"], "--json", status=71)
    assert json.loads(done.out.splitlines()[-2])["state"] == "JOB_STATE_FAILED"
    assert done.json["error"]["message"] == "No host has room."
