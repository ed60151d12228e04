"""Who is given a kept layer: whom the registry that it came from has just given it, nobody else.

The code that decides is the real one, on both sides of the sandbox: what is kept, what is asked
for, what is proved and what is taken. Registries are a model: who may have which repository changes
as the test goes on, transfers break off, kept blobs are evicted, and one registry says yes to
everything.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironworks.builderd.registry import fetch as fetching
from ironworks.builderd.registry.guard import Guard
from ironworks.builderd.registry.plan import FetchPlan, Place, directory_of, read_plan
from ironworks.builderd.sandbox import OnStep, Sandbox
from ironworks.builderd.sources import registry as sources
from ironworks.builderd.types import Descriptor, Pulled, Resolved
from ironworks.model.errors import IronError, NotFound, PermissionDenied

# The liar's name is as near to the honest one's as a name gets.
HONEST, MIRROR, LIAR = "registry.test:5000", "mirror.test", "registry.test_5000"
TENANTS = ("tnt_a", "tnt_b", "tnt_c")
REPOSITORIES = ("team/one", "team/two")
LAYERS: list[bytes] = [bytes([number]) * (1000 + number) for number in range(4)]
IMAGES = ((0, 1), (1, 2), (1, 2, 3))


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


BYTES = {digest(data): data for data in LAYERS}
MANIFESTS = [" ".join(digest(LAYERS[one]) for one in image).encode() for image in IMAGES]


@dataclass
class World:
    """Registries as they are now, and what they gave whoever asks now.

    Attributes:
        pushed: Registry, repository and image.
        allowed: Registry, repository and tenant; a mirror knows no tenants.
        cut: Whether transfers break off.
        asking: The tenant that asks.
        gave: Registry, repository and digest of what it got, if but a byte.
    """

    pushed: set[tuple[str, str, int]] = field(default_factory=set[tuple[str, str, int]])
    allowed: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])
    cut: bool = False
    asking: str = ""
    gave: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])

    def gives(self, registry: str, repository: str, username: str) -> bool:
        who = username if registry == HONEST else ""
        return (registry, repository, who) in self.allowed

    def holds(self, registry: str, repository: str, layer: str) -> bool:
        return any((registry, repository, n) in self.pushed for n in images_with(layer))


def images_with(layer: str) -> list[int]:
    return [n for n, image in enumerate(IMAGES) if layer in {digest(LAYERS[one]) for one in image}]


@dataclass
class Answer(io.BytesIO):
    """Of a registry."""

    def __init__(self, data: bytes, begin: int, cut: int) -> None:
        super().__init__(data[begin:cut])
        self.status = HTTPStatus.PARTIAL_CONTENT if begin else HTTPStatus.OK
        self.headers = {"Content-Range": f"bytes {begin}-"} if begin else {}


@dataclass
class ModelClient:
    """Stands for the client of registries."""

    world: World
    place: Place

    def manifest(self, reference: str) -> bytes:
        wanted = next(one for one in MANIFESTS if digest(one) == reference)
        registry, repository = self.place.registry, self.place.repository
        if registry == LIAR:
            return wanted
        if not self.world.gives(registry, repository, self.place.username):
            raise PermissionDenied("no")
        if (registry, repository, MANIFESTS.index(wanted)) not in self.world.pushed:
            raise NotFound("no")
        return wanted

    @contextmanager
    def opened(self, path: str, headers: Mapping[str, str]) -> Generator[Answer]:
        layer = path.removeprefix("/blobs/")
        registry, repository = self.place.registry, self.place.repository
        data = BYTES[layer]
        if registry == LIAR:
            yield Answer(b"x" * len(data), 0, len(data))
            return
        if not self.world.gives(registry, repository, self.place.username):
            raise PermissionDenied("no")
        if not self.world.holds(registry, repository, layer):
            raise NotFound("no")
        begin = int(headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.world.gave.add((registry, repository, layer))
        yield Answer(data, begin, len(data) // 2 if self.world.cut else len(data))


async def ask(world: World, sandbox: Sandbox, plan: FetchPlan) -> dict[str, Any]:
    """Run the program of the sandbox here; its paths are those of the host."""
    writable = {Path(inside).name: outside for inside, outside in sandbox.writable.items()}

    def client(place: Place, guard: Guard, image: str) -> ModelClient:
        del guard, image
        return ModelClient(world, place)

    with tempfile.TemporaryDirectory() as partial:
        for place in plan.places:
            name = directory_of(place.registry)
            (Path(partial) / name).symlink_to(writable[name])
        with patch.object(fetching, "Client", client):
            return asdict(fetching.fetch(replace(plan, partial=partial), lambda _: None))


def pull(world: World, store: Path, tenant: str, name: str, image: int) -> Pulled:
    """As a build of a tenant pulls an image whose manifest it knows."""

    async def asked(
        _command: Sequence[str],
        sandbox: Sandbox,
        plan: str,
        _on_step: OnStep,
        _groups: object,
        _name: str,
    ) -> dict[str, Any]:
        return await ask(world, sandbox, read_plan(plan))

    reachable = sources.Reachable(mirrors={HONEST: [MIRROR]})
    registries = sources.Registries(store=store, reachable=reachable, file_bytes=1 << 20)
    layers = [LAYERS[one] for one in IMAGES[image]]
    world.asking, world.gave = tenant, set()
    with patch.object(sources, "ask", asked):
        return asyncio.run(
            registries.pull(
                name,
                Resolved(digest=digest(MANIFESTS[image])),
                MANIFESTS[image],
                [
                    Descriptor(media_type="", digest=digest(one), size_bytes=len(one))
                    for one in layers
                ],
                tenant_id=tenant,
                on_bytes=lambda _: None,
                username=tenant,
                password="",
            )
        )


REGISTRIES = st.sampled_from([HONEST, MIRROR])
REPOSITORY = st.sampled_from(REPOSITORIES)
IMAGE = st.integers(0, len(IMAGES) - 1)
STEPS = st.one_of(
    st.tuples(st.just("push"), REGISTRIES, REPOSITORY, IMAGE),
    st.tuples(st.just("allow"), REGISTRIES, REPOSITORY, st.sampled_from(TENANTS)),
    st.tuples(st.just("allow"), REGISTRIES, REPOSITORY, st.sampled_from(TENANTS)),
    st.tuples(st.just("expire"), REGISTRIES, REPOSITORY, st.sampled_from(TENANTS)),
    st.tuples(st.just("cut"), st.booleans()),
    st.tuples(st.just("evict"), REGISTRIES, IMAGE),
    *[
        st.tuples(
            st.just("pull"),
            st.sampled_from([HONEST, HONEST, LIAR]),
            REPOSITORY,
            st.sampled_from(TENANTS),
            IMAGE,
        )
    ]
    * 3,
)
EVERYTHING: list[tuple[Any, ...]] = [
    *(("push", HONEST, one, image) for one in REPOSITORIES for image in range(len(IMAGES))),
    *(("allow", HONEST, one, "tnt_a") for one in REPOSITORIES),
    *(("pull", HONEST, one, "tnt_a", image) for one in REPOSITORIES for image in (0, 2)),
]


def apply(world: World, store: Path, step: tuple[Any, ...]) -> None:
    match step:
        case ("push", registry, repository, image):
            world.pushed.add((registry, repository, image))
        case ("allow", registry, repository, tenant):
            world.allowed.add((registry, repository, tenant if registry == HONEST else ""))
        case ("expire", registry, repository, tenant):
            world.allowed.discard((registry, repository, tenant if registry == HONEST else ""))
        case ("cut", cut):
            world.cut = cut
        case ("evict", registry, int(image)):
            name = digest(LAYERS[IMAGES[image][0]]).removeprefix("sha256:")
            (store / directory_of(registry) / sources.BLOBS / name).unlink(missing_ok=True)
        case ("pull", registry, repository, tenant, image):
            check_pull(world, store, registry, repository, tenant, image)
        case _:
            raise AssertionError(step)


def check_pull(
    world: World, store: Path, registry: str, repository: str, tenant: str, image: int
) -> None:
    entitled = (registry, repository, image) in world.pushed and world.gives(
        registry, repository, tenant
    )
    try:
        pulled = pull(world, store, tenant, f"{registry}/{repository}", image)
    except IronError:
        assert world.cut or not entitled
        return
    source = MIRROR if pulled.blobs.parent.name == directory_of(MIRROR) else registry
    for one in IMAGES[image]:
        layer = digest(LAYERS[one])
        assert (source, repository, layer) in world.gave
        assert (pulled.blobs / layer.removeprefix("sha256:")).read_bytes() == LAYERS[one]


@settings(deadline=None)
@given(st.booleans(), st.lists(STEPS, max_size=25))
def test_a_layer_is_given_to_whom_its_registry_gives_it(
    warm: bool,
    steps: list[tuple[Any, ...]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world, store = World(), Path(directory)
        for step in [*(EVERYTHING if warm else ()), *steps]:
            apply(world, store, step)


def test_what_was_given_once_is_not_given_again_when_the_right_has_expired(tmp_path: Path) -> None:
    world = World()
    for step in EVERYTHING:
        apply(world, tmp_path, step)
    world.allowed.clear()
    for tenant in TENANTS:
        for registry in (HONEST, LIAR):
            with pytest.raises(IronError):
                pull(world, tmp_path, tenant, f"{registry}/{REPOSITORIES[0]}", 0)
