"""A registry in a temporary folder, and a federation of three hospitals of different size."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from server.registry import Registry

sys.path.insert(0, str(Path(__file__).parent))  # the tests' own playground

from playground import HonestSite


@pytest.fixture
def registry(tmp_path: Path) -> Iterable[Registry]:
    opened = Registry(f"sqlite:///{tmp_path / 'registry.sqlite'}", tmp_path / "models")
    yield opened
    opened.close()


@pytest.fixture
def federation() -> dict[str, HonestSite]:
    sizes = {"north": (2400, 1.0), "south": (700, -1.0), "west": (400, 3.0)}
    return {name: HonestSite(name, examples, target) for name, (examples, target) in sizes.items()}
