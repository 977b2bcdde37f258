"""The model of a run, as the registry of a coordinator's kit keeps it."""

from __future__ import annotations

from pathlib import Path

from common.errors import UsageError
from common.kit import find_kit
from server.modelfiles import check_file
from server.registry import open_registry

BEST, LAST = "best", "last"


def kept_model(run: str, kit: Path | None, which: str = BEST) -> Path:
    """Return the file of a run's model: "best", which is the last where none was evaluated, or "last".

    Raises
    ------
    UsageError
        There is no such run, or `which` is neither; no kit is there.
    UpdateError
        The file is not the one that the registry kept.
    """
    registry = open_registry(find_kit(kit, "coordinator"))
    try:
        detail = registry.run_detail(registry.find(run))
    finally:
        registry.close()
    kept = {str(model.kind): model for model in detail.models}
    if which not in (BEST, LAST):
        raise UsageError(f'"{which}" is no model of a run: best or last')
    model = kept.get(which, kept[LAST])
    if model.round == 0:
        raise UsageError(f"run {detail.summary.name} has no trained model yet: it is {detail.summary.status}")
    path = Path(model.path)
    check_file(path, model.sha256)
    return path
