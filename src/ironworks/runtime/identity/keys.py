"""Keys of the services of one machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast, get_args

from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from ironworks.model.errors import FailedPrecondition

ServiceName = Literal["gatewayd", "builderd", "assetmanagerd", "metald", "billaged", "aggregatord"]
SERVICES: tuple[ServiceName, ...] = get_args(ServiceName)


def key_name(service: str, host_id: str = "") -> str:
    """Under which name a service's key stands, among files and in the trust: `billaged@hst_…`."""
    return f"{service}@{host_id}" if host_id else service


def private_key_path(data_dir: Path, service: str) -> Path:
    """Where a service's private key is."""
    return data_dir / "identity" / f"{service}.json"


def services_trust_path(data_dir: Path) -> Path:
    """Where the public keys of all services are."""
    return data_dir / "run" / "trust" / "services.json"


def users_trust_path(data_dir: Path) -> Path:
    """Where gatewayd puts the JWKS of its issuer."""
    return data_dir / "run" / "trust" / "users.json"


def write_private(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file that appears whole, with these permissions, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load_private_key(path: Path) -> ECKey:
    """The key at `path`.

    Raises:
        FailedPrecondition: it is absent or damaged.
    """
    try:
        return ECKey.import_key(cast("dict[str, str | list[str]]", json.loads(path.read_bytes())))
    except (OSError, ValueError, TypeError, KeyError, JoseError) as error:
        raise FailedPrecondition(
            f"The key {path.name} cannot be read.",
            hint="`iron up` makes the keys of a data directory; start the platform with it.",
            context={"path": str(path), "error": str(error)},
        ) from None


def ensure_service_keys(data_dir: Path) -> None:
    """Make the keys that are absent, and the file of public keys. Safe to repeat."""
    _ensure(data_dir, SERVICES)


def ensure_host_key(data_dir: Path, service: str, host_id: str) -> None:
    """Make a service's key for one host, and trust it. Safe to repeat.

    The host gets the private key; the data directories of the services that it calls get its line
    of the trust.
    """
    _ensure(data_dir, [key_name(service, host_id)])


def _ensure(data_dir: Path, names: Iterable[str]) -> None:
    trust = services_trust_path(data_dir)
    stored: object = json.loads(trust.read_bytes()) if trust.exists() else {}
    # Keys of other hosts stay trusted.
    public = cast("dict[str, object]", stored) if isinstance(stored, dict) else {}
    for name in names:
        path = private_key_path(data_dir, name)
        if not path.exists():
            key = ECKey.generate_key("P-256", private=True)
            write_private(path, json.dumps(key.as_dict(private=True)).encode())
        public[name] = load_private_key(path).as_dict(private=False)
    (data_dir / "identity").chmod(0o700)
    write_private(trust, json.dumps(public).encode(), mode=0o644)
