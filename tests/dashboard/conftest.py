"""A coordinator with a run that has ended, people of every role, and its dashboard's API."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "server")]

from ward import Ward, make_ward  # noqa: E402 - it is beside this file


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Ward]:
    made = make_ward(tmp_path_factory.mktemp("ward"))
    yield made
    made.registry.close()
