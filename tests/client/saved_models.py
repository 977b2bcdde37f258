"""Models for the tests of what is done with one: of real networks, with the weights of their job's seed."""

from __future__ import annotations

from pathlib import Path

from common.job import Job
from common.model_file import Provenance, SavedModel, read_saved
from common.networks import build_network, tensors_of
from server.modelfiles import write_model


def job_of(
    kind="classification", size=(32, 32), network="small-cnn", parameters=None, labels=("normal", "ill"), **data
):
    task = {"kind": kind, "labels": list(labels)}
    data = {"collection": "c", "size": list(size), **data}
    net = {"name": network, "parameters": parameters or {}}
    return Job.model_validate({"name": "chest", "sites": ["a"], "task": task, "data": data, "network": net})


def unet(size=(32, 32), **data):
    small = {"width": 4, "levels": 3}
    return job_of("segmentation", size, "unet", small, labels=("liver", "spleen"), **data)


def saved(folder: Path, job: Job) -> SavedModel:
    path = folder / "model.safetensors"
    provenance = Provenance("chest-260101-a1b2c3", job.digest, 7, "0.1.0", job.canonical_json())
    write_model(path, tensors_of(build_network(job)), provenance)
    return read_saved(path)
