"""Where things are in the folder of kits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import KitError
from common.federation import Federation, read_federation


@dataclass(frozen=True)
class KitsFolder:
    """The folder that `wardround kits create` made."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> KitsFolder:
        """Return the folder of kits at `folder`. Raises KitError if it is none."""
        found = cls(folder)
        if not found.federation_file.is_file():
            raise KitError(
                f"{folder}: no kits here (authority/federation.toml is missing): name the folder that "
                "`wardround kits create` made with --kits"
            )
        if not found.roster.is_dir():
            raise KitError(
                f"{found.roster}: there is no such folder: the coordinator's kit, with its roster, must be beside the "
                "authority; copy it back from the coordinator's machine"
            )
        return found

    @property
    def authority(self) -> Path:
        """The authority's folder."""
        return self.folder / "authority"

    @property
    def coordinator(self) -> Path:
        """The coordinator's kit."""
        return self.folder / "coordinator"

    @property
    def roster(self) -> Path:
        """The certificates of the admitted sites."""
        return self.coordinator / "roster"

    @property
    def sites(self) -> Path:
        """The folder of the sites' kits."""
        return self.folder / "sites"

    @property
    def federation_file(self) -> Path:
        """The federation's description."""
        return self.authority / "federation.toml"

    def federation(self) -> Federation:
        """Read the federation's description. Raises UsageError if it was damaged."""
        return read_federation(self.federation_file)
