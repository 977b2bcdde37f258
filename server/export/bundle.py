"""A MONAI bundle: the folder that MONAI's own programs take, with the network, its steps before and after, and papers.

The network is TorchScript, so that whoever runs the bundle needs MONAI and torch, and not this project; its weights are
there as safetensors too. What is loaded back here was written here, a moment before.

Reference: the MONAI Bundle specification, https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import RunError
from common.job import Job
from common.model_file import SavedModel
from server.export.bundle_steps import inferer, postprocessing, preprocessing
from server.export.comparing import difference, example_of, network_of
from server.export.plain import write_plain

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
INTENDED_USE = "Research. It is not a medical device, and what it says must be read by a person."


def write_bundle(model: SavedModel, source: Path, out: Path) -> float:
    """Write the folder; return how far the outputs of the network in it are. Raises RunError."""
    network = network_of(model)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for folder in ("configs", "models", "docs"):
            (staging / folder).mkdir()
        _write_traced(network, model, staging / "models" / "model.ts")
        write_plain(model, source, staging / "models" / "model.safetensors")
        _write_json(staging / "configs" / "metadata.json", metadata_of(model))
        _write_json(staging / "configs" / "inference.json", inference_of(model.job))
        (staging / "docs" / "README.md").write_text(_readme(model), encoding="utf-8")
        found = difference(network, model, _loaded(staging), "bundle's network")
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return found


def _write_traced(network: nn.Module, model: SavedModel, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is old, and it is what bundles hold
            torch.jit.save(torch.jit.trace(network, example_of(model)), path)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{model.job.network.name} can't be written as TorchScript: {reason}") from error


def _loaded(folder: Path) -> Any:
    """The network as MONAI loads it by the bundle's configuration."""
    from monai.bundle.config_parser import ConfigParser

    parser = ConfigParser()
    parser.read_config(folder / "configs" / "inference.json")
    parser["bundle_root"] = str(folder)
    parser["device"] = "$torch.device('cpu')"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parser.get_parsed_content("network")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def inference_of(job: Job) -> dict[str, Any]:
    """Return configs/inference.json."""
    images = "/*.nii.gz" if len(job.data.size) == 3 else "/*.png"
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "datalist": f"$[{{'image': path}} for path in sorted(glob.glob(@dataset_dir + '{images}'))]",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location='cpu')",
        "network": "$@network_def.to(@device).eval()",
        "preprocessing": preprocessing(job),
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0,
        },
        "inferer": inferer(job),
        "postprocessing": postprocessing(job),
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def metadata_of(model: SavedModel) -> dict[str, Any]:
    """Return configs/metadata.json."""
    job, shape = model.job, list(example_of(model, 1).shape[1:])
    classes = list(job.task.labels)
    if job.task.kind == "segmentation":
        classes = ["background", *classes]
    values = {str(number): name for number, name in enumerate(classes)}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"round {model.provenance.round} of run {model.provenance.run}"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"nibabel": metadata.version("nibabel"), "pytorch-ignite": "0.5.0"},
        "task": f"{job.name}: {job.task.kind}",
        "description": job.description or f"{job.task.kind} of {', '.join(job.task.labels)}",
        "authors": f"the sites {', '.join(job.sites)}",
        "copyright": "",
        "intended_use": INTENDED_USE,
        "data_type": "nibabel" if len(job.data.size) == 3 else "png",
        "provenance": {name: text for name, text in model.provenance.header().items() if name != "job"},
        "job": json.loads(model.job.canonical_json()),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "magnitude", "num_channels": shape[0], "spatial_shape": shape[1:],
                    "dtype": "float32", "value_range": [0, 1], "is_patch_data": bool(job.data.patch),
                    "channel_def": {str(number): "image" for number in range(shape[0])},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities" if job.task.kind == "classification" else "image",
                    "format": job.task.kind, "num_channels": len(classes), "dtype": "float32",
                    "spatial_shape": shape[1:] if job.task.kind == "segmentation" else [], "value_range": [],
                    "is_patch_data": False, "channel_def": values,
                }
            },
        },
    }  # fmt: skip


def _readme(model: SavedModel) -> str:
    job, from_ = model.job, model.provenance
    return (
        f"# {job.name}\n\n{job.description or job.task.kind}\n\n{INTENDED_USE}\n\n"
        f"Labels: {', '.join(job.task.labels)}. Network: {job.network.name}, as TorchScript (`models/model.ts`); its "
        "weights alone are `models/model.safetensors`.\n\n"
        f"From round {from_.round} of run {from_.run} (Ward Round {from_.code_version}); job {from_.job_digest}; "
        f"SHA-256 of the model's file {model.sha256}.\n\n"
        "`configs/inference.json` has the steps before and after as MONAI's transforms. They come close to Ward "
        "Round's own (another filter resizes images); DICOM's windows, which Ward Round applies, they do not know.\n\n"
        "    python -m monai.bundle run --config_file configs/inference.json --dataset_dir FOLDER\n"
    )
