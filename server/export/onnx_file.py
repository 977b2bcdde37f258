"""ONNX: one file that other programs run without torch. Written by torch, checked and run by ONNX's own packages."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import RunError, UsageError
from common.files import write_atomically
from common.model_file import SavedModel
from server.export.comparing import difference, example_of, network_of

OPSET = 17
INPUT, OUTPUT = "image", "output"


def write_onnx(model: SavedModel, source: Path, out: Path) -> float:
    """Write the network with any number of inputs at once; return how far its outputs are. Raises as the table says."""
    onnx, runtime = _packages()
    network = network_of(model)
    content = _exported(network, model, onnx)
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = difference(network, model, lambda inputs: session.run([OUTPUT], {INPUT: inputs.numpy()})[0], "ONNX file")
    write_atomically(out, content, overwrite=False)
    return found


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed, which writes ONNX: pip install '.[export]'") from error
    return onnx, onnxruntime


def _exported(network: nn.Module, model: SavedModel, onnx: Any) -> bytes:
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # torch would rather be asked in another way, which needs more packages
            torch.onnx.export(
                network, (example_of(model),), f"{folder}/onnx", dynamo=False, opset_version=OPSET, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
            )  # fmt: skip
            made = onnx.load(f"{folder}/onnx")
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{model.job.network.name} can't be written as ONNX: {reason}") from error
    onnx.checker.check_model(made)
    made.producer_name, made.producer_version = "wardround", model.provenance.code_version
    made.doc_string = f"{model.job.name}: {model.job.description}".strip(": ")
    labels = "|".join(model.job.task.labels)
    facts = {**model.provenance.header(), "task": model.job.task.kind, "labels": labels, "model_sha256": model.sha256}
    onnx.helper.set_model_props(made, facts)
    return bytes(made.SerializeToString())
