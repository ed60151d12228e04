"""Where the platform is and how to authenticate to it.

Looked for in this order; the first that says something wins:

1. arguments (and the platform of a data directory, if one is given);
2. `IRONWORKS_API_URL`, `IRONWORKS_API_KEY`, `IRONWORKS_CA_FILE`;
3. `~/.config/ironworks/config.toml` (below `XDG_CONFIG_HOME`, if set), which `iron login` writes;
4. the platform that runs on this machine: `run/platform.json` and `gatewayd/operator.key` of its
   data directory, which only root can read.

A key is never sent to another platform than the one it was configured for: a source that names a
URL gives its key and its CA to that URL only.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from ironworks.model.errors import FailedPrecondition, InvalidRequest

DEFAULT_DATA_DIR = Path("/var/lib/ironworks")
_LOGIN_HINT = "Run `iron login URL`, set IRONWORKS_API_URL, or start a platform with `iron up`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How to reach one platform.

    Attributes:
        url: The public API, `https://host:port`.
        api_key: `iwk_…`; empty if there is none.
        ca_file: PEM file of the CA that signed the API's certificate; None: the system's CAs.
    """

    url: str
    api_key: str = field(default="", repr=False)
    ca_file: Path | None = None

    @property
    def host(self) -> str:
        """Host name or address in the URL."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the API is on this machine."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What one place says."""

    url: str = ""
    api_key: str = field(default="", repr=False)
    ca_file: str = ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine (RFC 6761 for names)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def config_file(environ: Mapping[str, str] | None = None) -> Path:
    """The file that `iron login` writes."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "/")) / ".config")
    return Path(base) / "ironworks" / "config.toml"


def save(configuration: Configuration, path: Path) -> None:
    """Write the configuration file, readable by its owner only."""
    values = {
        "url": configuration.url,
        "api_key": configuration.api_key,
        "ca_file": str(configuration.ca_file or ""),
    }
    # A JSON string is also a TOML basic string.
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items() if value)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    beside.replace(path)


def _from_file(path: Path) -> _Source:
    try:
        content = tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return _Source()
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"{path} cannot be read: {error}.", hint="Correct it, or run `iron login` again."
        ) from None
    known = {name: str(content[name]) for name in ("url", "api_key", "ca_file") if name in content}
    return _Source(**known)


def _from_machine(data_dir: Path) -> _Source:
    """The platform of a data directory; empty where none runs or we may not read it."""
    try:
        content: object = json.loads((data_dir / "run" / "platform.json").read_bytes())
    except (OSError, ValueError):
        return _Source()
    if not isinstance(content, dict):
        return _Source()
    platform = cast("dict[str, object]", content)
    try:
        api_key = (data_dir / "gatewayd" / "operator.key").read_text().strip()
    except OSError:
        api_key = ""
    return _Source(
        url=str(platform.get("api_url", "")),
        api_key=api_key,
        ca_file=str(platform.get("ca_file", "")),
    )


def _check(configuration: Configuration) -> Configuration:
    parts = urlsplit(configuration.url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
        raise InvalidRequest(
            f"{configuration.url!r} is not the address of a platform.",
            hint="Give it like https://127.0.0.1:8443.",
        )
    if parts.scheme == "http" and not configuration.is_local:
        raise InvalidRequest(
            "A platform on another machine is reached over https only.",
            hint="An API key must not cross a network in the clear: give an https:// address.",
        )
    return configuration


def discover(
    url: str = "",
    api_key: str = "",
    ca_file: Path | str | None = None,
    *,
    data_dir: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """The configuration that applies.

    Args:
        url: Wins over every other source, as do `api_key` and `ca_file`.
        api_key: `iwk_…`.
        ca_file: PEM file.
        data_dir: Use the platform that runs over this directory.
        environ: Environment; that of the process by default.

    Raises:
        FailedPrecondition: no platform is configured.
        InvalidRequest: a source is damaged, or the URL is none.
    """
    environ = os.environ if environ is None else environ
    sources = [_Source(url=url, api_key=api_key, ca_file=str(ca_file or ""))]
    if data_dir is not None:
        sources.append(_from_machine(data_dir))
        if not url and not sources[-1].url:
            raise FailedPrecondition(
                f"No platform runs over {data_dir}, or you may not read that directory.",
                hint=f"Start it with `iron up --data-dir {data_dir}`; use it as root.",
            )
    sources.append(
        _Source(
            url=environ.get("IRONWORKS_API_URL", ""),
            api_key=environ.get("IRONWORKS_API_KEY", ""),
            ca_file=environ.get("IRONWORKS_CA_FILE", ""),
        )
    )
    sources.append(_from_file(config_file(environ)))
    sources.append(_from_machine(Path(environ.get("IRONWORKS_DATA_DIR") or DEFAULT_DATA_DIR)))
    found = next((source.url for source in sources if source.url), "").rstrip("/")
    if not found:
        raise FailedPrecondition("No platform is configured.", hint=_LOGIN_HINT)
    fitting = [source for source in sources if source.url.rstrip("/") in {"", found}]
    ca = next((source.ca_file for source in fitting if source.ca_file), "")
    return _check(
        Configuration(
            url=found,
            api_key=next((source.api_key for source in fitting if source.api_key), ""),
            ca_file=Path(ca) if ca else None,
        )
    )
