"""The parameters of each task: what a job says of it beyond its labels, and what is known of it without torch.

What a task does with them stands in its own file of this package.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from common.faults import explain_parameter
from common.section import Section

Truth = Literal["label", "mask", "boxes", "image"]
"""What a case's truth is: a label's text, a mask of structures, boxes, or the image itself."""


class TaskParameters(Section):
    """No parameters; and what kind of task it is.

    `criterion`: the metric by which the best model is kept unless the job names one. `truth`: what must be known of a
    case. `fewest_labels`: how many labels a job must name.
    """

    criterion: ClassVar[str] = "loss"
    truth: ClassVar[Truth] = "label"
    fewest_labels: ClassVar[int] = 1


class Classification(TaskParameters):
    """Each image gets one of the labels, or with `multilabel` any of them."""

    criterion: ClassVar[str] = "auc"
    fewest_labels: ClassVar[int] = 2

    specificity: float = Field(0.95, gt=0, lt=1, description="the specificity at which sensitivity is also given")


class Segmentation(TaskParameters):
    """Each pixel or voxel gets one of the structures that `labels` names, or none of them: the background."""

    criterion: ClassVar[str] = "dice"
    truth: ClassVar[Truth] = "mask"

    loss: Literal["dice-ce", "dice-focal", "generalized-dice"] = Field(
        "dice-ce", description='"dice-ce": Dice and cross-entropy; "dice-focal": Dice and focal; "generalized-dice"'
    )
    tolerance: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="surface Dice: how far off a surface still counts as found (mm with data.spacing)",
    )
    overlap: float = Field(0.25, ge=0, lt=1, description="overlap of the windows in which whole cases are predicted")
    largest_component: bool = Field(False, description="whether only the largest piece of each structure is kept")


class Detection(TaskParameters):
    """Boxes, each with a score, around the things that `labels` names: in 2D and 3D, from a heat map of middles."""

    criterion: ClassVar[str] = "froc"
    truth: ClassVar[Truth] = "boxes"

    most_boxes: int = Field(256, ge=1, le=4096, description="how many boxes an image may have, at most")
    most_found: int = Field(64, ge=1, le=1024, description="how many boxes are found in an image, at most")
    threshold: float = Field(
        0.3, gt=0, lt=1, description="score from which a box counts as called, in sensitivity and precision"
    )
    hit: float = Field(
        0.5,
        gt=0,
        le=0.95,
        description="overlap (IoU) from which a box is found, in froc, sensitivity and precision",
    )
    suppression: float = Field(
        0.3, gt=0, le=1, description="of two boxes of a label that overlap more than this, the surer one is kept"
    )
    overlap: float = Field(0.25, ge=0, lt=1, description="overlap of the windows in which whole cases are predicted")


class Reconstruction(TaskParameters):
    """The image from a part of its k-space: columns of its Fourier transform are left out, and the network fills in."""

    criterion: ClassVar[str] = "ssim"
    truth: ClassVar[Truth] = "image"
    fewest_labels: ClassVar[int] = 0

    mask: Literal["random", "equispaced"] = Field("random", description="which columns of k-space are measured")
    acceleration: float = Field(4.0, gt=1, le=32, description="one of so many columns is measured, the middle included")
    center_fraction: float = Field(
        0.08, gt=0, lt=1, description="share of the columns, about the middle, always measured"
    )
    sees: Literal["image", "k-space"] = Field(
        "image",
        description='what the network gets: the "image" of what was measured, or "k-space" and its mask (unrolled-cnn)',
    )
    loss: Literal["l1", "ssim-l1"] = Field("l1", description='"l1": mean absolute error; "ssim-l1": that and 1 - SSIM')


PARAMETERS: dict[str, type[TaskParameters]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "reconstruction": Reconstruction,
}
"""The tasks that come with Ward Round. One from elsewhere checks its parameters itself."""


def kind_of(task: str) -> type[TaskParameters]:
    """Return the class of a task's parameters; of a task that is not in the table, the one without any."""
    return PARAMETERS.get(task, TaskParameters)


def read_task_parameters(task: str, given: dict[str, Any]) -> TaskParameters:
    """Return a task's parameters, defaults filled in; of one that is not in the table, none.

    Raises
    ------
    ValueError
        An unknown parameter (the message has the nearest right one), or a wrong value.
    """
    if task not in PARAMETERS:
        return TaskParameters()
    try:
        return PARAMETERS[task].model_validate(given)
    except ValidationError as error:
        raise ValueError(explain_parameter(error, f'task "{task}"', PARAMETERS[task])) from None


def most_boxes(section: Any) -> int:
    """Return how many boxes an image may have, by a job's task section."""
    return int(getattr(section.known_parameters, "most_boxes", 256))
