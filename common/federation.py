"""The federation, as its coordinator describes it in `federation.toml`: its name, where it is, and its sites.

name = "chest-study"

[coordinator]
address = "wardround.example.org:9092"
dns = ["wardround.example.org"]
addresses = ["192.0.2.10"]

[[sites]]
name = "north"
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import AfterValidator, Field, ValidationError, model_validator

from common.errors import UsageError
from common.faults import explain
from common.files import read_text
from common.job import Name, Section

COORDINATOR_NAME = "coordinator"
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# RFC 1123, section 2.1, with RFC 1035's lengths: letters, digits and hyphens, at most 63 a label and 253 in all.
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def _ip_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f'"{text}" is no IPv4 or IPv6 address') from None


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _dns_name(text: str) -> str:
    labels = text.split(".")
    if _is_ip_address(text):
        raise ValueError(f'"{text}" is an address, not a name: list it under addresses')
    # A last label of digits only can't be a top-level domain: it is an address with a slip in it (RFC 3696, section 2).
    if len(text) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise ValueError(f'"{text}" is no DNS name (letters, digits, hyphens and dots; no scheme, no wildcard)')
    return text.lower()


def _coordinator_address(text: str) -> str:
    host, separator, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not separator or not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f'"{text}" is not "host:port" with a port from 1 to 65535')
    if not _is_ip_address(bare):
        return f"{_dns_name(bare)}:{int(port)}"
    found = ipaddress.ip_address(bare)
    if found.version == 6 and bare == host:
        raise ValueError(f'"{text}": write an IPv6 address in brackets, as in "[{host}]:{port}"')
    if found.is_unspecified:
        raise ValueError(f'"{text}" means every address of a machine: name the one that sites connect to')
    return f"[{found}]:{int(port)}" if found.version == 6 else f"{found}:{int(port)}"


class CoordinatorSection(Section):
    """Where the coordinator is, and which names and addresses its certificate is for."""

    address: Annotated[str, AfterValidator(_coordinator_address)] = Field(
        description='where sites connect: "host:port", IPv6 in brackets'
    )
    dns: tuple[Annotated[str, AfterValidator(_dns_name)], ...] = Field(
        (), description="further DNS names that the server certificate is for"
    )
    addresses: tuple[Annotated[str, AfterValidator(_ip_address)], ...] = Field(
        (), description="further IP addresses that the server certificate is for"
    )

    @property
    def host(self) -> str:
        """The host of `address`: a DNS name, or an IP address without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of `address`."""
        return int(self.address.rpartition(":")[2])

    @property
    def certificate_hosts(self) -> tuple[str, ...]:
        """The DNS names and IP addresses that the server certificate is for, each once: host, dns, addresses.

        When the host is a loopback one, `LOOPBACK` is added, so that a federation on one machine is reached by any
        of its spellings. Otherwise nothing is added to what the federation lists.
        """
        is_loopback = _is_ip_address(self.host) and ipaddress.ip_address(self.host).is_loopback
        extra = LOOPBACK if is_loopback or self.host == "localhost" else ()
        return tuple(dict.fromkeys([self.host, *self.dns, *self.addresses, *extra]))


class SiteEntry(Section):
    """One hospital's site."""

    name: Name = Field(description="the site's name: letters, digits, dot, underscore, hyphen; at most 64")
    title: str = Field("", max_length=200, description="the hospital's full name, for people")
    contact: str = Field("", max_length=200, description="whom to write to about this site")


class Federation(Section):
    """A coordinator and its sites."""

    name: Name = Field(description="the federation's name: letters, digits, dot, underscore, hyphen; at most 64")
    coordinator: CoordinatorSection = Field(description="the table [coordinator], with its address")
    sites: tuple[SiteEntry, ...] = Field(min_length=1, description="one table [[sites]] for each site")

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Federation:
        # Names become names of files: two that differ only in case would share one on some file systems.
        seen: dict[str, str] = {COORDINATOR_NAME: COORDINATOR_NAME}
        for site in self.sites:
            folded = site.name.lower()
            if folded == COORDINATOR_NAME:
                raise ValueError(f"a site can't be named \"{site.name}\": that name is the coordinator's")
            if folded in seen:
                raise ValueError(f'sites: "{site.name}" is there twice (case aside): each site needs a name of its own')
            seen[folded] = site.name
        return self

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sites' names, in the file's order."""
        return tuple(site.name for site in self.sites)

    def with_site(self, name: str, *, title: str = "", contact: str = "") -> Federation:
        """Return the federation with one more site. Raises UsageError if its name does not do or is taken."""
        table = self.model_dump(mode="json")
        table["sites"].append({"name": name, "title": title, "contact": contact})
        return _validated(table, "the new site", "")

    def to_toml(self) -> str:
        """Return the federation as TOML that reads back as the same; what is at its default is left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_defaults=True))


def read_federation(path: Path) -> Federation:
    """Read a federation from a TOML file.

    Raises
    ------
    UsageError
        The file can't be read, is no TOML, or holds a wrong key, type or value. The message has one line for each
        fault: file, line, key, what is expected there, and the nearest right key.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise UsageError(f"{path}: the federation can't be read: {error.strerror}") from error
    return parse_federation(text, source=str(path))


def parse_federation(text: str, source: str = "federation") -> Federation:
    """Read a federation from TOML text; `source` names it in messages. Raises UsageError as `read_federation` does."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not valid TOML: {error}") from error
    return _validated(table, source, text)


def _validated(table: Mapping[str, Any], source: str, text: str) -> Federation:
    try:
        return Federation.model_validate(table)
    except ValidationError as error:
        raise UsageError(explain(error, Federation, source, text)) from error
