"""`federation.toml`: the coordinator's address and the sites, as the study coordinator writes them."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from common.errors import UsageError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Table(BaseModel):
    """A frozen table that accepts no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Coordinator(Table):
    """Where sites connect, and the names and addresses that the server's certificate is for."""

    address: str = Field(description='"host:port" at which sites connect')
    dns: tuple[str, ...] = Field((), description="more DNS names of the coordinator")
    addresses: tuple[str, ...] = Field((), description="IP addresses of the coordinator")

    @field_validator("address")
    @classmethod
    def _is_host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError('must be "host:port", as "wardround.example.org:9092"')
        return value

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            ipaddress.ip_address(value)  # its ValueError says what is wrong
        return values

    @property
    def host(self) -> str:
        """The host part of `address`, without the brackets of IPv6."""
        return self.address.rpartition(":")[0].strip("[]")


class SiteEntry(Table):
    """One hospital: its name in jobs and certificates, and for people what it is called and whom to ask."""

    name: Name = Field(description="the site's name in jobs, certificates and tables")
    title: str = Field("", description="the hospital's name for people")
    contact: str = Field("", description="whom to ask there")

    @field_validator("name")
    @classmethod
    def _is_free(cls, value: str) -> str:
        if value == "coordinator":
            raise ValueError('"coordinator" is the name of the coordinator')
        return value


class Federation(Table):
    """The coordinator and its sites."""

    name: Name = Field(description="the federation's name")
    coordinator: Coordinator
    sites: tuple[SiteEntry, ...] = Field(min_length=1, description="the hospitals")

    @field_validator("sites")
    @classmethod
    def _names_differ(cls, sites: tuple[SiteEntry, ...]) -> tuple[SiteEntry, ...]:
        # Compared without case: a site's name is a folder's name too.
        names = [site.name.lower() for site in sites]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'the site "{twice}" is named twice')
        return sites


def read_federation(path: Path) -> Federation:
    """Read a federation from its TOML file.

    Raises
    ------
    UsageError
        The file can't be read, is no TOML, or has a wrong key or value: one line for each fault.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{path}: the federation can't be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        return Federation.model_validate(table)
    except ValidationError as error:
        faults = [
            f'{path}: "{".".join(str(part) for part in fault["loc"])}": {fault["msg"].removeprefix("Value error, ")}'
            for fault in error.errors()
        ]
        raise UsageError("\n".join(faults)) from error
