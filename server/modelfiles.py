"""Models on disk: safetensors, with what they come from in the header. No pickle is ever read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.numpy import save

from common.errors import RunError, UpdateError
from common.files import sha256_file, write_atomically
from common.model_file import Provenance, read_tensors
from common.update import Tensors, check_tensors


def write_model(path: Path, tensors: Tensors, provenance: Provenance) -> tuple[str, int]:
    """Write a model; return the file's SHA-256 and its size in bytes.

    Guarantees: the file is there in full or not at all. Raises RunError when the disk can't take it.
    """
    content = save(tensors, metadata=provenance.header())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"{path}: the model can't be written ({error.strerror}): mend that, then resume") from error
    return hashlib.sha256(content).hexdigest(), len(content)


def read_model(path: Path, sha256: str) -> Tensors:
    """Read a model of the registry. Raises UpdateError if it is not the file that was kept."""
    check_file(path, sha256)
    return read_tensors(path)[0]


def check_file(path: Path, sha256: str) -> None:
    """Raise UpdateError if a model's file is not the one that the registry kept."""
    try:
        if sha256_file(path) != sha256:
            raise UpdateError(f"{path}: the model is not the one that the registry kept: its SHA-256 differs")
    except OSError as error:
        raise UpdateError(f"{path}: the model can't be read ({error.strerror}): restore it from a backup") from error


def read_checkpoint(path: Path, like: Tensors) -> Tensors:
    """Read a model from outside, as the first model of a run.

    Raises
    ------
    UpdateError
        It is no safetensors file, or it does not fit the architecture of `like`.
    """
    tensors, _ = read_tensors(path)
    check_tensors(tensors, like, str(path))
    return {name: tensors[name] for name in like}
