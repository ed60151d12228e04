"""Every method of the API is on the access table, and either implemented or on the list."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from protobuf import DescService

from ironworks import gen
from ironworks.runtime.access import ACCESS
from ironworks.runtime.access.rule import ADMINS, BILLING, READERS, WRITERS
from ironworks.runtime.identity import SERVICES

HERE = Path(__file__).parent
PACKAGES = HERE.parents[1] / "src/ironworks"
MOST_UNIMPLEMENTED = 58


def modules(package: str) -> Iterator[str]:
    root = import_module(package)
    for module in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield module.name


def protocols() -> dict[str, type]:
    """`ironworks.metald.v1.VmService` → the generated class that handlers derive from."""
    found: dict[str, type] = {}
    for name in modules(gen.__name__):
        if name.endswith("_connect"):
            for value in vars(import_module(name)).values():
                if not inspect.isclass(value) or value.__module__ != name:
                    continue
                # The generator makes a synchronous twin of each; handlers derive from the other.
                if hasattr(value, "desc") and not value.__name__.endswith("Sync"):
                    found[descriptor(value).type_name] = value
    return found


def descriptor(protocol: type) -> DescService:
    describe: Callable[[], object] = vars(protocol)["desc"].__get__(None, protocol)
    described = describe()
    assert isinstance(described, DescService)
    return described


def methods(protocol: type) -> dict[str, str]:
    """`ironworks.metald.v1.VmService/CreateVm` → `create_vm`."""
    described = descriptor(protocol)
    names = [name for name in vars(protocol) if not name.startswith("_") and name != "desc"]
    paths = [f"{described.type_name}/{method.name}" for method in described.methods]
    assert len(paths) == len(names)
    for path, name in zip(paths, names, strict=True):
        assert path.rpartition("/")[2].lower() == name.replace("_", "")
    return dict(zip(paths, names, strict=True))


def handlers(protocol: type) -> list[type]:
    """Classes in the service's `api` module or package that derive from the protocol."""
    service = protocol.__module__.split(".")[3]
    if not (PACKAGES / service / "__init__.py").exists():
        return []
    names = [
        name
        for name in modules(f"ironworks.{service}")
        if name.split(".")[2] == "api" and not name.endswith("__main__")
    ]
    return [
        value
        for name in names
        for value in vars(import_module(name)).values()
        if inspect.isclass(value) and protocol in value.__mro__[1:]
    ]


def only_refuses(function: object) -> bool:
    """Whether the function does nothing but raise: an override in name only."""
    assert callable(function)
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    rest = [
        step
        for step in definition.body
        if not isinstance(step, ast.Delete | ast.Pass)
        and not (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
    ]
    return all(isinstance(step, ast.Raise) for step in rest)


def implemented(protocol: type, name: str) -> bool:
    return any(
        getattr(handler, name) is not getattr(protocol, name)
        and not only_refuses(getattr(handler, name))
        for handler in handlers(protocol)
    )


def test_the_list_of_what_is_not_implemented_is_true_and_only_shrinks() -> None:
    missing = sorted(
        path
        for protocol in protocols().values()
        for path, name in methods(protocol).items()
        if not implemented(protocol, name)
    )
    listed = (HERE / "unimplemented.txt").read_text().splitlines()
    assert listed == missing
    assert len(listed) <= MOST_UNIMPLEMENTED, "implement one before the API gets another"


def test_the_access_table_has_every_method_and_no_other() -> None:
    known = {path for protocol in protocols().values() for path in methods(protocol)}
    assert sorted(known - set(ACCESS)) == []
    assert sorted(set(ACCESS) - known) == []


def test_the_access_table_names_services_and_roles_that_exist() -> None:
    roles = READERS | WRITERS | ADMINS | BILLING
    for path, rule in ACCESS.items():
        assert rule.services <= set(SERVICES), path
        assert rule.roles <= roles, path


def test_someone_may_call_each_method() -> None:
    nobody = [
        path for path, rule in ACCESS.items() if not (rule.services or rule.roles or rule.anonymous)
    ]
    assert nobody == []


def test_only_the_exchange_of_keys_for_tokens_is_open_to_everyone() -> None:
    anonymous = {path for path, rule in ACCESS.items() if rule.anonymous}
    assert {path.split("/")[0] for path in anonymous} <= {"ironworks.gatewayd.v1.TokenService"}


def test_every_mutation_takes_an_idempotency_key() -> None:
    reads = ("Get", "List", "Watch", "Query", "Verify", "Exchange", "Stream", "Read", "Check")
    reads += ("Preview", "Export", "Evaluate", "WhoAmI")
    keyed_otherwise = {
        "ironworks.aggregatord.v1.BatchService/SubmitBatch": "the batch's id is its key",
        "ironworks.aggregatord.v1.BatchService/ReportLive": "the last one replaces all",
        "ironworks.assetmanagerd.v1.AssetService/UploadAsset": "the key is in the first message",
        "ironworks.builderd.v1.BuildService/UploadImage": "the key is in the first message",
        "ironworks.gatewayd.v1.HostDirectoryService/Heartbeat": "the last one replaces all",
    }
    lacking = {
        f"{descriptor(protocol).type_name}/{method.name}"
        for protocol in protocols().values()
        for method in descriptor(protocol).methods
        if not method.name.startswith(reads)
        and "idempotency_key" not in {field.name for field in method.input.fields}
    }
    assert lacking == set(keyed_otherwise)
