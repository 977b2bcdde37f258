"""The model's own file: safetensors, with its job and provenance in the header, as `wardround predict` takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from common.errors import RunError
from common.files import write_atomically
from common.model_file import SavedModel, read_tensors


def write_plain(model: SavedModel, source: Path, out: Path) -> float:
    """Write a copy; one of a file of before jobs stood in there has its job in it. Raises RunError."""
    write_atomically(out, save(model.tensors, metadata=model.provenance.header()), overwrite=False)
    found, _ = read_tensors(out)
    if found.keys() != model.tensors.keys():
        out.unlink()
        raise RunError(f"{out}: the file that was written lacks tensors: check the disk")
    return max(
        (float(np.abs(found[name] - tensor).max(initial=0)) for name, tensor in model.tensors.items()), default=0
    )
