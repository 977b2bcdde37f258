"""Models on disk: safetensors, with what they come from in the header. No pickle is ever read."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import RunError, UpdateError
from common.files import sha256_file, write_atomically
from common.update import Tensors, check_tensors


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from: the run, its job's digest, the round after which it stood, and the code."""

    run: str
    job_digest: str
    round: int
    code_version: str


def code_version() -> str:
    """Return this code's version; "unknown" where it runs from a bundle that is not installed."""
    try:
        return metadata.version("wardround")
    except metadata.PackageNotFoundError:
        return "unknown"


def write_model(path: Path, tensors: Tensors, provenance: Provenance) -> tuple[str, int]:
    """Write a model; return the file's SHA-256 and its size in bytes.

    Guarantees: the file is there in full or not at all. Raises RunError when the disk can't take it.
    """
    fields = {name: str(value) for name, value in asdict(provenance).items()}
    content = save(tensors, metadata=fields)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"{path}: the model can't be written ({error.strerror}): mend that, then resume") from error
    return hashlib.sha256(content).hexdigest(), len(content)


def read_model(path: Path, sha256: str) -> Tensors:
    """Read a model of the registry. Raises UpdateError if it is not the file that was kept."""
    try:
        if sha256_file(path) != sha256:
            raise UpdateError(f"{path}: the model is not the one that the registry kept: its SHA-256 differs")
    except OSError as error:
        raise UpdateError(f"{path}: the model can't be read ({error.strerror}): restore it from a backup") from error
    return _read(path)


def read_checkpoint(path: Path, like: Tensors) -> Tensors:
    """Read a model from outside, as the first model of a run.

    Raises
    ------
    UpdateError
        It is no safetensors file, or it does not fit the architecture of `like`.
    """
    tensors = _read(path)
    check_tensors(tensors, like, str(path))
    return {name: tensors[name] for name in like}


def _read(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, ValueError) as error:
        raise UpdateError(f"{path}: no safetensors file, or a damaged one: {error}") from error
    except OSError as error:
        raise UpdateError(f"{path}: the model can't be read: {error.strerror or error}") from error
