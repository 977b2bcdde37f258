"""The startup kit: the folder that makes a machine a site or the coordinator of one federation.

A kit is the node's home: identity and certificates as issued, and everything the node keeps beside them.

    kit.toml       role, name, federation, the coordinator's address    (as issued)
    ca.crt         the federation's authority                           (as issued)
    site.key       the site's private key, OpenSSH, 0600                (made at the site by `wardround site enrol`)
    site.crt       the site's certificate                               (made by `wardround kits admit`)
    policy.toml    what this hospital allows a job to do                (the steward's)
    server.key, server.crt, roster/                                     (coordinator only)
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from common.errors import KitError
from common.files import read_text

Role = Literal["site", "coordinator"]
ENVIRONMENT_VARIABLE = "WARDROUND_KIT"
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True)
class Kit:
    """A kit that was read from its folder.

    `federation_id` is the SHA-256 fingerprint (hexadecimal) of the authority's certificate: kits of two federations
    of the same name differ in it. `address` is the coordinator's "host:port" for gRPC.
    """

    folder: Path
    role: Role
    name: str
    federation: str
    federation_id: str
    address: str

    @property
    def authority_certificate(self) -> Path:
        """The federation's CA certificate, PEM."""
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        """This node's certificate, PEM."""
        return self.folder / ("site.crt" if self.role == "site" else "server.crt")

    @property
    def key(self) -> Path:
        """This node's private key: OpenSSH for a site (as Flower wants it), PKCS#8 PEM for the coordinator."""
        return self.folder / ("site.key" if self.role == "site" else "server.key")


def read_kit(folder: Path, role: Role) -> Kit:
    """Read the kit in `folder`.

    Raises
    ------
    KitError
        There is no kit, it is damaged, or it is the other role's.
    """
    path = folder / "kit.toml"
    try:
        table = tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise KitError(
            f"{folder}: no kit here (kit.toml is missing): name the {role}'s kit folder, or set {ENVIRONMENT_VARIABLE}"
        ) from error
    except OSError as error:
        raise KitError(f"{path}: the kit can't be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise KitError(f"{path}: not valid TOML: {error}") from error
    fields = ("role", "name", "federation", "federation_id", "address")
    for field in fields:
        if not isinstance(table.get(field), str):
            raise KitError(f'{path}: "{field}" is missing or no text: ask the coordinator for a new kit')
    if not is_address(table["address"]):
        raise KitError(f'{path}: "address" is not "host:port", got "{table["address"]}": ask the coordinator for it')
    if table["role"] != role:
        raise KitError(f"{folder}: this is the kit of a {table['role']} ({table['name']}), not of a {role}")
    return Kit(
        folder=folder,
        role=cast(Role, table["role"]),
        **{field: table[field] for field in fields if field != "role"},
    )


def is_address(text: str) -> bool:
    """Whether `text` is "host:port" with a port from 1 to 65535."""
    host, _, port = text.rpartition(":")
    return bool(host and _PORT.fullmatch(port)) and 1 <= int(port) <= 65535


def find_kit(named: Path | None, role: Role) -> Kit:
    """Read the kit that is meant: the one named, else that of `WARDROUND_KIT`, else the current folder's.

    Raises KitError as `read_kit` does.
    """
    return read_kit(named or Path(os.environ.get(ENVIRONMENT_VARIABLE, ".")), role)
