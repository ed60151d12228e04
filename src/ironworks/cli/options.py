"""Options that every command of the API has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from ironworks.cli.output import Output
from ironworks.sdk import AsyncIronworks


@Parameter(name="*", group="Platform and output")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Which platform, and how to answer.

    Attributes:
        json: End with one line of JSON, for programs.
        url: The platform's API; default: IRONWORKS_API_URL, else what `iron login` remembered,
            else the platform of this machine.
        ca_file: PEM file of the CA that signed the API's certificate.
        data_dir: Use the platform that runs over this directory of this machine, as its operator.
    """

    json: bool = False
    url: str = ""
    ca_file: Path | None = None
    data_dir: Path | None = None

    def client(self) -> AsyncIronworks:
        """A client of that platform; the API key comes from the configuration, never from argv."""
        return AsyncIronworks(self.url, ca_file=self.ca_file, data_dir=self.data_dir)

    def output(self) -> Output:
        """Where the answer goes."""
        return Output(json=self.json)


DEFAULTS = Options()
