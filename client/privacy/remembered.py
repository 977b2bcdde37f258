"""The choice of an engine, remembered: in the process, and in the site's cache folder for the next start.

What is remembered is of the network, the device and the software, and of no patient. Whatever the choice depends on is
its key: with another version of torch, say, engines are proved and timed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from client.privacy.choice import Workload, choose_engine
from client.privacy.engines import ENGINES
from common.files import write_atomically
from common.job import Job
from common.tasks.task import Task

log = logging.getLogger("wardround.privacy")
_CHOSEN: dict[str, str] = {}


def remembered_engine(network: nn.Module, task: Task, work: Workload, job: Job, folder: Path | None) -> str:
    """Return `choose_engine`'s choice, which is made once for a network, workload, device and software.

    `folder` is where it is kept between processes (None: nowhere). A file there that can't be read is made anew.
    """
    key = _key(network, work, job)
    if key not in _CHOSEN:
        name = hashlib.sha256(key.encode("ascii")).hexdigest()[:16]
        path = folder / f"engine-{name}.json" if folder else None
        _CHOSEN[key] = _read(path, key) or _chosen(network, task, work, key, path)
    return _CHOSEN[key]


def _key(network: nn.Module, work: Workload, job: Job) -> str:
    device = next(network.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    about: dict[str, Any] = {
        "network": job.network.model_dump(mode="json"),
        "task": job.task.model_dump(mode="json"),
        "scale": job.data.scale,
        "shape": work.shape,
        "images_a_unit": work.images_a_unit,
        "at_once": work.at_once,
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "software": [torch.__version__, *(metadata.version(package) for package in ("opacus", "monai", "wardround"))],
        "engines": list(ENGINES),
    }
    return json.dumps(about, sort_keys=True)


def _read(path: Path | None, key: str) -> str | None:
    try:
        kept = json.loads(path.read_text(encoding="ascii")) if path else {}
    except (OSError, ValueError):
        return None
    good = isinstance(kept, dict) and kept.get("key") == key and kept.get("engine") in ENGINES
    return str(kept["engine"]) if good else None


def _chosen(network: nn.Module, task: Task, work: Workload, key: str, path: Path | None) -> str:
    engine = choose_engine(network, task, work)
    if path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"key": key, "engine": engine}).encode("ascii"))
        except OSError as error:  # it costs a measurement at the next start, and nothing else
            log.warning("the choice of engine %s can't be kept: %s", engine, error.strerror)
    return engine
