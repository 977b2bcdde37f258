"""What a bundle does before and after its network: MONAI's transforms, as near to this project's own as they come.

Axes: a volume is (slices, rows, columns), towards the head, posterior and left (client/intake/nifti.py).
"""

from __future__ import annotations

from typing import Any

from common.errors import RunError
from common.job import Job
from common.tasks.parameters import Segmentation

PERCENTILES = (0.5, 99.5)
"""As client/intake/intensity.py."""


def preprocessing(job: Job) -> dict[str, Any]:
    """Return the transforms from a file (NIfTI at a 3D size, PNG at a 2D one) to what the network sees."""
    data = job.data
    if data.table or data.bag != "none":
        raise RunError("a bundle is of images, not of tables or bags: export the model as onnx")
    return _composed(*(_of_volumes(job) if len(data.size) == 3 else _of_pictures(job)), *_placed(job))


def _of_volumes(job: Job) -> list[dict[str, Any]]:
    low, high = PERCENTILES
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SPL", "labels": None},
        {
            "_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": low, "upper": high, "b_min": 0.0,
            "b_max": 1.0, "clip": True,
        },
    ]  # fmt: skip
    if job.data.channels == 3:
        steps.append({"_target_": "RepeatChanneld", "keys": "image", "repeats": 3})
    return steps


def _of_pictures(job: Job) -> list[dict[str, Any]]:
    convert = "$lambda image: image.convert('RGB')" if job.data.channels == 3 else "$lambda image: image.convert('L')"
    return [
        {
            "_target_": "LoadImaged", "keys": "image", "image_only": True, "reader": "PILReader",
            "reverse_indexing": False, "converter": convert,
        },
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {
            "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0.0, "b_max": 1.0,
            "clip": True,
        },
    ]  # fmt: skip


def _placed(job: Job) -> list[dict[str, Any]]:
    size, mode = list(job.data.size), "trilinear" if len(job.data.size) == 3 else "bilinear"
    if job.data.spacing and len(size) == 3:
        return [
            {"_target_": "Spacingd", "keys": "image", "pixdim": list(job.data.spacing), "mode": "bilinear"},
            {"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": size},
        ]
    return [
        {"_target_": "Resized", "keys": "image", "spatial_size": size, "mode": mode, "anti_aliasing": True},
    ]


def inferer(job: Job) -> dict[str, Any]:
    """Return how whole images are predicted: at once, or window by window where patches were trained on."""
    if not job.data.patch:
        return {"_target_": "SimpleInferer"}
    known = job.task.known_parameters
    overlap = known.overlap if isinstance(known, Segmentation) else 0.25
    return {
        "_target_": "SlidingWindowInferer", "roi_size": list(job.data.patch), "sw_batch_size": 4, "overlap": overlap,
        "mode": "gaussian",
    }  # fmt: skip


def postprocessing(job: Job) -> dict[str, Any]:
    """Return the transforms from the network's outputs to files: masks on the image's own grid, or probabilities."""
    if job.task.kind == "segmentation":
        return _composed(
            {
                "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
                "nearest_interp": False, "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"},
        )  # fmt: skip
    if job.task.kind != "classification":
        return _composed({"_target_": "EnsureTyped", "keys": "pred"})
    kind = "sigmoid" if job.task.multilabel else "softmax"
    return _composed(
        {"_target_": "Activationsd", "keys": "pred", kind: True},
        {
            "_target_": "SaveClassificationd", "keys": "pred", "meta_keys": None, "meta_key_postfix": "meta_dict",
            "output_dir": "@output_dir", "filename": "predictions.csv",
        },
    )  # fmt: skip


def _composed(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(steps)}
