"""The last answer of each run, kept until the next: a request that comes again gets the same answer again.

A coordinator that was restarted, or a link that broke while an answer was under way, asks for a round once more.
Training again would spend privacy again; sending the same bytes again costs nothing (post-processing).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import DataError, UpdateError
from common.files import write_atomically
from common.release import numbers_of
from common.update import Answer, Request

FOLDER = "outbox"


def request_key(request: Request) -> str:
    """Return a digest of all that decides the answer: run, round, job and every byte of the incoming model."""
    digest = hashlib.sha256()
    for text in (request.kind, request.split, request.run, str(request.number), request.job.digest):
        digest.update(text.encode() + b"\0")
    for name, tensor in (*request.model.items(), *request.control.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\0".encode())
        digest.update(np.ascontiguousarray(tensor).data if tensor.size else b"")
    return digest.hexdigest()


def remember(kit_folder: Path, key: str, request: Request, answer: Answer) -> None:
    """Keep `answer` as the run's last. Raises DataError when the disk can't take it."""
    path = _path(kit_folder, request)
    fields = {name: value for name, value in asdict(answer).items() if name not in ("tensors", "numbers", "head")}
    fields |= {"values": answer.numbers.flat() | answer.numbers.lists(), "bases": answer.numbers.bases()}
    metadata = {"request": key, "answer": json.dumps(fields), "order": json.dumps(list(answer.tensors or {}))}
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, save(dict(answer.tensors or {}), metadata=metadata), mode=0o600)
    except OSError as error:
        raise DataError(f"{path}: the answer can't be kept ({error.strerror}): free disk space") from error


def recall(kit_folder: Path, key: str, request: Request) -> Answer | None:
    """Return the answer that was given to the very same request, or None."""
    path = _path(kit_folder, request)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("request") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in json.loads(metadata["order"])}
            fields = json.loads(metadata["answer"])
            numbers = numbers_of(fields.pop("values"), fields.pop("bases"))
            return Answer(**fields, numbers=numbers, tensors=tensors or None)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, UpdateError):
        return None  # never kept, or damaged: the round is trained (and spent) again


def _path(kit_folder: Path, request: Request) -> Path:
    # The run's name comes from outside: only its digest becomes part of a path.
    return kit_folder / FOLDER / f"{hashlib.sha256(request.run.encode()).hexdigest()[:32]}.safetensors"
