"""A federation on one machine: its folder, made as a real one is made, key by key and kit by kit.

FOLDER/federation.toml  job.toml  kits/  data/SITE/  logs/
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from certs.enrol import accept, enrol
from certs.kits import admit, create_kits
from client.policy import FILE_NAME, Policy, policy_text
from common.errors import UsageError
from common.federation import read_federation
from common.files import write_atomically
from common.kit import ENVIRONMENT_VARIABLE as KIT_VARIABLE
from common.kit import read_kit
from server.registry import ENVIRONMENT_VARIABLE as REGISTRY_VARIABLE
from server.registry import Registry

COLLECTION = "chest-xray"


@dataclass(frozen=True)
class LocalFederation:
    """Where everything is. `sites` are the hospitals' names; `address` is the coordinator's host:port."""

    folder: Path
    sites: tuple[str, ...]
    address: str

    @property
    def coordinator_kit(self) -> Path:
        """The coordinator's kit."""
        return self.folder / "kits" / "coordinator"

    @property
    def logs(self) -> Path:
        """Where processes write what they have to say."""
        return self.folder / "logs"

    @property
    def job(self) -> Path:
        """The job's file."""
        return self.folder / "job.toml"

    @property
    def registry(self) -> Registry:
        """The coordinator's registry: the one in its kit, whatever the environment names."""
        models = self.coordinator_kit.resolve() / "models"
        return Registry(f"sqlite:///{self.coordinator_kit.resolve() / 'registry.sqlite'}", models)

    @property
    def environment(self) -> dict[str, str]:
        """What must stand in the environment of its processes, for them to use these kits and no other."""
        return {REGISTRY_VARIABLE: "", KIT_VARIABLE: ""}

    def site_kit(self, site: str) -> Path:
        """A site's kit."""
        return self.folder / "kits" / "sites" / site

    def data(self, site: str) -> Path:
        """A hospital's images and labels.csv."""
        return self.folder / "data" / site


def create_federation(folder: Path, sites: Sequence[str], *, collection: str, private: bool) -> LocalFederation:
    """Make certificates and kits in `folder`, enrol and admit each site, and write policies that allow `collection`.

    Raises UsageError when `folder` is in use, KitError as the kits' functions do.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    federation = LocalFederation(folder, tuple(sites), f"127.0.0.1:{free_port()}")
    write_atomically(folder / "federation.toml", _federation_toml(federation).encode())
    kits = create_kits(read_federation(folder / "federation.toml"), folder / "kits")
    for site in sites:
        kit = read_kit(federation.site_kit(site), "site")
        accept(kit, admit(kits, enrol(kit)))
        write_atomically(kit.folder / FILE_NAME, _policy(collection, private=private).encode())
        federation.data(site).mkdir(parents=True)
    return federation


def _federation_toml(federation: LocalFederation) -> str:
    sites = "".join(f'\n[[sites]]\nname = "{site}"\n' for site in federation.sites)
    return (
        f'name = "demo"\n\n[coordinator]\naddress = "{federation.address}"\n'
        f'dns = ["localhost"]\naddresses = ["127.0.0.1"]\n{sites}'
    )


def _policy(collection: str, *, private: bool) -> str:
    """The policy as installed, with one collection allowed (and jobs without privacy, if wanted).

    Counts and metrics leave as they are: the patients here are made up or published.
    """
    return policy_text(Policy(collections=(collection,), require_privacy=private, metrics="exact", counts="public"))


def free_port() -> int:
    """Return a port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
