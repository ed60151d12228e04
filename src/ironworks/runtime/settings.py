"""Settings: defaults, then `<data_dir>/ironworks.toml`, then the environment (`IRONWORKS_…`).

One flat space of names for the whole platform, so that one file configures one machine. A service
subclasses `Settings` with its own limits; `docs/reference/settings.md` lists them all.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ironworks.model.errors import InvalidRequest

DEFAULT_DATA_DIR = Path("/var/lib/ironworks")
SETTINGS_FILE = "ironworks.toml"
_TAG_CHARS = 6
_NAMES = "setting_names.txt"
"""Of all services, written by `deploy/reference.py`: none of them imports the others."""


def tag_of(data_dir: Path) -> str:
    """Six hexadecimal digits that stand for a data directory in the names of what is made for it.

    Platforms over different directories share one machine, and each knows its own by the tag.
    """
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:_TAG_CHARS]


def _file(data_dir: object = None) -> Path:
    return Path(
        str(data_dir or os.environ.get("IRONWORKS_DATA_DIR", DEFAULT_DATA_DIR)), SETTINGS_FILE
    )


class Settings(BaseSettings):
    """What every service needs to know of the platform it is part of."""

    model_config = SettingsConfigDict(env_prefix="IRONWORKS_", extra="ignore", frozen=True)

    data_dir: Path = Field(default=DEFAULT_DATA_DIR, description="All state of this machine.")
    guest_dir: Path = Field(
        default=Path("/var/cache/ironworks/guest"), description="Built guest kernels and initrds."
    )
    trust_domain: str = Field(
        default="ironworks.local", description="SPIFFE trust domain of the platform."
    )
    domain: str = Field(
        default="ironworks.localhost", description="Parent domain of deployment endpoints."
    )
    listen_host: str = Field(default="127.0.0.1", description="Address that services bind.")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    max_body_bytes: int = Field(
        default=10 * 1024 * 1024, ge=1024, description="Request body limit."
    )

    edge_port: int = Field(default=8443, description="HTTPS port of the public API (Envoy).")
    gatewayd_url: str = "http://127.0.0.1:8085"
    metald_url: str = "http://127.0.0.1:8080"
    billaged_url: str = "http://127.0.0.1:8081"
    builderd_url: str = "http://127.0.0.1:8082"
    assetmanagerd_url: str = "http://127.0.0.1:8083"
    aggregatord_url: str = "http://127.0.0.1:8084"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the file."""
        del dotenv_settings, file_secret_settings
        given: object = init_settings().get("data_dir")
        file = TomlConfigSettingsSource(settings_cls, toml_file=_file(given))
        return init_settings, env_settings, file

    def url_of(self, service: str) -> str:
        """Base URL of a service, for example `http://127.0.0.1:8080`."""
        url: object = getattr(self, f"{service}_url", None)
        if not isinstance(url, str):
            raise InvalidRequest(f"There is no service {service}.")
        return url


class BadSettings(InvalidRequest):
    """A setting is not valid, or the file of settings cannot be read."""

    exit_status = 78


_S = TypeVar("_S", bound=Settings)


def load(kind: type[_S]) -> _S:
    """The settings of this process.

    Raises:
        BadSettings: the file is not TOML, a value is out of its bounds, or the file has a name that
            no service knows; says which.
    """
    try:
        settings = kind()
        _refuse_unknown(_file(), frozenset(kind.model_fields))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise BadSettings(
            f"The settings are not valid: {wrong}.",
            hint=f"Correct IRONWORKS_… or {SETTINGS_FILE} in the data directory.",
        ) from None
    except (ValueError, OSError) as error:
        raise BadSettings(
            f"{SETTINGS_FILE} in the data directory cannot be read: {error}.",
            hint="Correct or remove the file.",
        ) from None
    return settings


def _refuse_unknown(file: Path, own: frozenset[str]) -> None:
    """Refuse what a typo would otherwise leave without effect; names of other services are fine."""
    if not file.is_file():
        return
    given = tomllib.loads(file.read_text()).keys()
    if given <= own:
        return
    known = own.union(Path(__file__).with_name(_NAMES).read_text().split())
    unknown = sorted(given - known)
    if unknown:
        near = {name: get_close_matches(name.lower(), known, 1) for name in unknown}
        raise BadSettings(
            f"{file} has settings that there are not: {', '.join(unknown)}.",
            hint=" ".join(f"Instead of {name}: {it[0]}?" for name, it in near.items() if it)
            or "docs/reference/settings.md lists those that there are.",
        )
