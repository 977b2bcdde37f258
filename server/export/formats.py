"""The table of formats that a model is exported in. Each export is loaded back and compared before it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.errors import UsageError
from common.model_file import SavedModel, read_saved
from server.export.bundle import write_bundle
from server.export.onnx_file import write_onnx
from server.export.plain import write_plain

FORMATS: dict[str, Callable[[SavedModel, Path, Path], float]] = {
    "safetensors": write_plain,
    "onnx": write_onnx,
    "bundle": write_bundle,
}
"""Each writes a model, which was read from the second path, to the third; returns the largest absolute difference."""


def export_model(source: Path, out: Path, kind: str) -> float:
    """Write the model in the file `source` to `out`; return how far what was written is from it, at most.

    Guarantees: `out` is there in full, and gives what the model gives, or it is not there at all.

    Raises
    ------
    UsageError
        `out` is there already, there is no such format, or a package that writes it is not installed.
    RunError
        What was written gives other outputs than the model, or the network can't be written in this format.
    """
    if kind not in FORMATS:
        raise UsageError(f'"{kind}" is no format of models: {", ".join(FORMATS)}')
    if out.exists():
        raise UsageError(f"{out}: it is there already, and nothing is overwritten: name another")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: there is no such folder: make it first")
    return FORMATS[kind](read_saved(source), source, out)
