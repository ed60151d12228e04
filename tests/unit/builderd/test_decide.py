from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironworks.builderd import decide
from ironworks.builderd.decide import NEXT, fail, move, parse_image, take_up, with_registry
from ironworks.builderd.types import ENDED, Build, BuildState, RootfsFormat, Transport
from ironworks.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
    ResourceExhausted,
)
from ironworks.model.units import NS_PER_SECOND

DIGEST = "sha256:" + "a" * 64
BUILD = Build(
    build_id="bld_1",
    tenant_id="tnt_acme",
    image="app",
    format=RootfsFormat.SQUASHFS,
    state=BuildState.QUEUED,
    created_at_ns=1,
    updated_at_ns=1,
    timeout_seconds=60,
)


@pytest.mark.parametrize(
    ("text", "transport", "location", "name"),
    [
        ("alpine", Transport.REGISTRY, "alpine", ""),
        ("docker:27", Transport.REGISTRY, "docker:27", ""),
        ("docker://alpine:3", Transport.REGISTRY, "alpine:3", ""),
        ("ghcr.io/acme/app:v1", Transport.REGISTRY, "ghcr.io/acme/app:v1", ""),
        (f"localhost:5000/app@{DIGEST}", Transport.REGISTRY, f"localhost:5000/app@{DIGEST}", ""),
        ("oci:/images/app", Transport.LAYOUT, "/images/app", ""),
        ("oci:/images//app/.:v1", Transport.LAYOUT, "/images/app", "v1"),
        ("oci-archive:/a.tar:app:1", Transport.OCI_ARCHIVE, "/a.tar", "app:1"),
        ("docker-archive:/a.tar", Transport.DOCKER_ARCHIVE, "/a.tar", ""),
        ("/images/app", Transport.PATH, "/images/app", ""),
    ],
)
def test_references(text: str, transport: Transport, location: str, name: str) -> None:
    found = parse_image(text)
    assert (found.transport, found.location, found.name) == (transport, location, name)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-v", "--help", "oci:relative", "oci:/a/../b", "oci:/a:b c", "oci-archive:", "dir:/x",
     "containers-storage:x", "docker://", "docker:///x", "http://x/y", "a b", "a\nb", "./x", "../x",
     "app@sha256:short", "app:" + "x" * 200, "x" * 1025, "ü", "a//b"],
)  # fmt: skip
def test_what_cannot_be_a_reference(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_image(text)


@given(st.text(max_size=60))
def test_no_text_leads_upwards_or_into_an_option(text: str) -> None:
    try:
        found = parse_image(text)
    except InvalidRequest:
        return
    assert ".." not in found.location.split("/")
    assert not found.location.startswith("-")
    if found.transport is not Transport.REGISTRY:
        assert found.location.startswith("/")


def test_an_upload_is_named_as_it_was_answered() -> None:
    found = parse_image("upload:upl_" + "a" * 26)
    assert (found.transport, found.location) == (Transport.UPLOAD, "upl_" + "a" * 26)
    with pytest.raises(InvalidRequest, match="not what an upload answers"):
        parse_image("upload:upl_../x")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("alpine", "docker.io/library/alpine"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("acme/app", "docker.io/acme/app"),
        ("docker.io/alpine", "docker.io/library/alpine"),
        ("localhost/app", "localhost/app"),
        ("host:5000/app", "host:5000/app"),
        ("ghcr.io/acme/app@" + DIGEST, "ghcr.io/acme/app@" + DIGEST),
    ],
)
def test_a_short_name_means_the_default_registry(text: str, meant: str) -> None:
    assert with_registry(parse_image(text), "docker.io").location == meant


def test_another_default_registry_has_no_library() -> None:
    assert with_registry(parse_image("app:1"), "hub.acme.com").location == "hub.acme.com/app:1"
    layout = parse_image("oci:/srv/app")
    assert with_registry(layout, "hub.acme.com") == layout


def test_a_build_has_the_rest_of_its_time_when_it_is_taken_up_again() -> None:
    build = take_up(BUILD, "w", 10 * NS_PER_SECOND)
    assert decide.seconds_left(build, 10 * NS_PER_SECOND) == 60
    again = take_up(build, "v", 50 * NS_PER_SECOND)
    assert decide.seconds_left(again, 50 * NS_PER_SECOND) == 20


@given(before=st.sampled_from(BuildState), after=st.sampled_from(BuildState))
def test_only_what_is_drawn_follows(before: BuildState, after: BuildState) -> None:
    build = replace(BUILD, state=before)
    if after in NEXT[before]:
        moved = move(build, after, 9)
        assert moved.state is after
        assert (moved.ended_at_ns == 9) == (after in ENDED)
    else:
        with pytest.raises(FailedPrecondition):
            move(build, after, 9)


def test_everything_but_the_end_can_fail_be_cancelled_and_begin_again() -> None:
    for state in BuildState:
        if state in ENDED:
            assert NEXT[state] == frozenset()
        else:
            assert {BuildState.FAILED, BuildState.CANCELLED, BuildState.RESOLVING} <= NEXT[state]


def test_completed_comes_only_after_registering_or_reuse() -> None:
    before = {state for state, after in NEXT.items() if BuildState.COMPLETED in after}
    assert before == {BuildState.REGISTERING, BuildState.RESOLVING}


def test_a_build_keeps_the_time_of_its_stages() -> None:
    build = take_up(BUILD, "w", 10)
    build = move(build, BuildState.PULLING, 20)
    again = take_up(build, "w2", 30)
    assert (again.attempt_count, again.started_at_ns, again.worker) == (2, 10, "w2")
    failed = fail(again, NotFound("There is none.", hint="Look."), 40)
    assert [(stage.started_at_ns, stage.ended_at_ns) for stage in failed.stages] == [
        (10, 20),
        (20, 30),
        (30, 40),
    ]
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.message, failed.failure.state) == (
        "not_found",
        "There is none. Look.",
        BuildState.RESOLVING,
    )
    assert failed.ended


def test_bounds() -> None:
    assert decide.check_request({}, 0, 60) == 60
    assert decide.check_request({"a": "b"}, 5, 60) == 5
    refused: list[tuple[dict[str, str], int]] = [
        ({}, 61),
        ({}, -1),
        ({"": "x"}, 0),
        ({"x": "y" * 129}, 0),
        ({str(n): "" for n in range(65)}, 0),
    ]
    for labels, seconds in refused:
        with pytest.raises(InvalidRequest):
            decide.check_request(labels, seconds, 60)
    decide.check_queue(1, 2)
    with pytest.raises(ResourceExhausted):
        decide.check_queue(2, 2)


def test_what_has_ended_is_not_cancelled() -> None:
    decide.check_cancellable(BUILD)
    for state in (BuildState.COMPLETED, BuildState.FAILED):
        with pytest.raises(IronError, match=state.value):
            decide.check_cancellable(replace(BUILD, state=state))


def test_results_are_shared_within_a_tenant_only() -> None:
    build = replace(BUILD, image_digest=DIGEST)
    assert decide.reuse_key(build) == decide.reuse_key(replace(build, build_id="bld_2"))
    assert decide.reuse_key(build) != decide.reuse_key(replace(build, tenant_id="tnt_evil"))
    assert decide.reuse_key(build) != decide.reuse_key(replace(build, format=RootfsFormat.EXT4))
