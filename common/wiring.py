"""What one side's command may ask of the other side: by name, imported only when it is asked for.

`client` and `server` do not know each other. A machine that has a coordinator's kit has the coordinator's code too, so
a command of the one can do what the other offers here, as `wardround` itself is put together in `common/cli.py`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

KEPT_MODEL = "server.kept:kept_model"
"""The file of a run's model, by the registry of a coordinator's kit."""


def kept_model(run: str, kit: Path | None, which: str) -> Path:
    """Return the file of a run's "best" or "last" model. Raises UsageError when there is no such run or model."""
    path: Path = _offered(KEPT_MODEL)(run, kit, which)
    return path


def _offered(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)
