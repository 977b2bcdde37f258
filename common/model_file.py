"""A model as one safetensors file that says of itself what it is: its run, its round, and its whole job.

With the job in the header a model can be used wherever the file goes: at a hospital, without the coordinator and
without a network. No pickle is ever read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError, safe_open

from common.errors import JobError, UpdateError, UsageError
from common.files import sha256_file
from common.job import Job, job_from_json
from common.update import Tensors


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from: the run, its job's digest, the round after which it stood, the code, and the job.

    `job` is the job's canonical JSON; "" in files of before it was written there.
    """

    run: str
    job_digest: str
    round: int
    code_version: str
    job: str = ""

    def header(self) -> dict[str, str]:
        """Return it as a safetensors header."""
        return {name: str(value) for name, value in asdict(self).items() if value != ""}


@dataclass(frozen=True)
class SavedModel:
    """A model that was read: its tensors, its job, where it comes from, and the file's SHA-256."""

    tensors: Tensors
    job: Job
    provenance: Provenance
    sha256: str


def code_version() -> str:
    """Return this code's version; "unknown" where it runs from a bundle that is not installed."""
    try:
        return metadata.version("wardround")
    except metadata.PackageNotFoundError:
        return "unknown"


def read_saved(path: Path, job: Job | None = None) -> SavedModel:
    """Read a model's file. `job` is for a file that holds none.

    Raises
    ------
    UsageError
        Neither the file nor the caller has a job, or the file says that it is of another.
    UpdateError
        It can't be read, or is no safetensors file.
    """
    tensors, header = read_tensors(path)
    own = _job_in(header, path)
    found = own or job
    if found is None:
        raise UsageError(f"{path}: the file does not hold its job, as those of older versions: name it with --job")
    digest = header.get("job_digest", found.digest)
    if job is not None and job.digest != digest:
        raise UsageError(f"{path}: the model is of another job: its digest begins with {digest[:12]}, not with "
                         f"{job.digest[:12]}: leave --job out, or name the right one")  # fmt: skip
    number = header.get("round", "0")
    provenance = Provenance(
        header.get("run", "unknown"),
        digest,
        int(number) if number.isdecimal() else 0,
        header.get("code_version", "unknown"),
        found.canonical_json(),
    )
    return SavedModel(tensors, found, provenance, sha256_file(path))


def read_tensors(path: Path) -> tuple[Tensors, Mapping[str, str]]:
    """Return a safetensors file's tensors and its header. Raises UpdateError when it is none, or can't be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())  # it is no mapping
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        raise UpdateError(f"{path}: no safetensors file, or a damaged one: {error}") from error
    except OSError as error:
        raise UpdateError(f"{path}: the model can't be read: {error.strerror or error}") from error


def _job_in(header: Mapping[str, str], path: Path) -> Job | None:
    """The job of a header; None where it has none. Raises UsageError for one that is not what its digest says."""
    if "job" not in header:
        return None
    try:
        job = job_from_json(header["job"], source=f"{path}: its job")
    except JobError as error:
        raise UsageError(f"{error}: it was written by a newer version, or changed") from error
    written = hashlib.sha256(header["job"].encode()).hexdigest()  # as it was then: defaults may have been added since
    if header.get("job_digest", written) != written:
        raise UsageError(f"{path}: the job in the file is not the one that its digest says: fetch the file again")
    return job
