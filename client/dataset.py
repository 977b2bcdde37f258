"""The cases of a collection as one array: decoded once, then mapped from a cache that every epoch reads.

How a case becomes an array: intensities in [0, 1] as the file's format makes them (`client/intake/intensity.py`); grey
or colour as the job wants it (colour to grey by BT.601 luma, grey to colour by repetition); then stretched to the job's
size, not keeping the aspect, by an antialiased triangle filter along each axis; or, with `data.spacing`, brought to
that spacing by the same filter and cropped or padded with 0 about the middle. Masks and boxes follow
(`client/placing.py`).

For a 2D size each frame of a file, and each axial slice of a NIfTI volume, is a case. For a 3D size a multi-frame file,
a NIfTI volume, or the single-frame files of one DICOM series are a case. Slides, and bags of images: `client/bags.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from client.annotations import boxes_of, mask_of, read
from client.bags import bagged_cases, bags, is_slide, slides
from client.catalog import Case, Catalog
from client.intake.formats import PROBE, format_named
from client.intake.image import FileRefusedError, Grid, Pixels
from client.intake.table import read_values, vector
from client.placing import as_boxes, as_case, as_mask
from client.subgroups import Groups, groups_of
from common.errors import DataError
from common.files import sha256_file
from common.job import MPP, TILES, DataSection, TaskSection
from common.tasks.parameters import Truth, kind_of, most_boxes

_VERSION = 1
SLIDES_WANT = (
    "a slide is cut into tiles at data.mpp: leave data.spacing out, and give data.size two numbers, or three with "
    'data.bag = "slide"'
)


@dataclass(frozen=True)
class CaseSet:
    """The decoded cases of one split.

    Shapes: images (N, C, *size) float32 in [0, 1] (complex ones in [-1, 1]), mapped from the cache, or for tables
    (N, F) float32 of any range; labels N; patients (N,) int64, from 0 to patient_count - 1; truth: masks (N, *size)
    uint8 or boxes (N, M, 1 + 2 axes) float32 (`common.tasks.task.Cases`), None where labels say it all; groups: each
    patient's bin by trait, (patient_count,) int64, of the traits that the job names, of the test split.
    """

    images: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    patients: npt.NDArray[np.int64]
    truth: npt.NDArray[Any] | None = None
    groups: Groups = field(default_factory=dict)

    @property
    def patient_count(self) -> int:
        """How many patients there are."""
        return int(self.patients.max()) + 1 if len(self.patients) else 0


@dataclass(frozen=True)
class _Group:
    """What is decoded together: the cases of one file (2D), or of one volume (3D); `cases` is how many it yields."""

    members: tuple[Case, ...]
    cases: int


def open_cases(
    catalog: Catalog,
    job_data: DataSection,
    split: str,
    cache: Path,
    *,
    task: TaskSection | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CaseSet:
    """Return a split's cases in the form that the job wants; the first call decodes them, later ones map the cache.

    `task` says what must be known of a case: a label by default.

    Memory: one file or volume at a time, whatever the collection's size. Two processes may call this at once: the
    second waits for the first. `progress` is called with (cases done, cases in all) while decoding.

    Raises
    ------
    DataError
        The collection is unknown, has no case in the split, has no labels (masks, boxes); a file is gone, changed or
        can't be decoded; an image does not fit the size (2D images, 3D size) or has no spacing where the job asks for
        one; or the cache can't be written (disk full).
    """
    cases = catalog.cases(job_data.collection, split)
    if not cases:
        raise DataError(f'the collection "{job_data.collection}" has no image in its {split} split: import more')
    truth = kind_of(task.kind).truth if task else "label"
    _require_truth(cases, truth, job_data.collection, split)
    groups = _groups(cases, job_data)
    form = (len(job_data.features),) if job_data.table else (job_data.channels, *job_data.size)
    count = sum(group.cases for group in groups)
    images = _cached(
        _name(catalog, job_data, split), (count, *form), np.float32, lambda: _decoded(groups, job_data), cache, progress
    )
    owners = [group.members[0] for group in groups for _ in range(group.cases)]
    index = {patient: at for at, patient in enumerate(dict.fromkeys(owner.patient for owner in owners))}
    patients = np.array([index[owner.patient] for owner in owners], dtype=np.int64)
    labels = tuple(owner.label or "" for owner in owners)
    traits = task.subgroups if task and split == "test" else ()  # the split that says what a model is worth
    apart = groups_of(catalog.records(job_data.collection), list(index), traits) if traits else {}
    if task is None or truth in ("label", "image"):
        return CaseSet(images, labels, patients, groups=apart)
    return CaseSet(images, labels, patients, _truth(catalog, groups, job_data, task, split, cache), apart)


def _require_truth(cases: Sequence[Case], truth: Truth, collection: str, split: str) -> None:
    """Raise DataError for cases of which what the task needs is not known."""
    if truth == "label" and (lacking := sum(case.label is None for case in cases)):
        what, how = "a label", "--labels"
    elif truth in ("mask", "boxes") and (lacking := sum(not case.annotation for case in cases)):
        what, how = ("a mask", "--masks") if truth == "mask" else ("boxes", "--boxes")
    else:
        return
    raise DataError(
        f'the collection "{collection}" has {lacking} images without {what} in its {split} split: '
        f"import their folder with {how}"
    )


def _truth(
    catalog: Catalog, groups: Sequence[_Group], job_data: DataSection, task: TaskSection, split: str, cache: Path
) -> npt.NDArray[Any]:
    """The masks or boxes of all cases, in their order, on the job's grid."""
    count = sum(group.cases for group in groups)
    if kind_of(task.kind).truth == "mask":
        form: tuple[int, ...] = job_data.size
        kind: type[Any] = np.uint8
    else:
        form, kind = (most_boxes(task), 1 + 2 * len(job_data.size)), np.float32
    kit = catalog.path.parent
    stem, digest = _name(catalog, job_data, split)
    wanted = hashlib.sha256(json.dumps([digest, task.kind, task.labels, form]).encode()).hexdigest()[:32]
    name = (f"{stem}{task.kind}-", wanted)
    return _cached(name, (count, *form), kind, lambda: drawn_truth(kit, groups, job_data, task), cache, None, "c")


def _groups(cases: Sequence[Case], job_data: DataSection) -> list[_Group]:
    if job_data.bagged:
        return [_Group(members, 1) for members in bags(cases, job_data.bag)]
    whole = [case for case in cases if is_slide(case)]
    if whole and (len(job_data.size) == 3 or job_data.spacing or job_data.table):
        raise DataError(f"{whole[0].image}: {SLIDES_WANT}")
    others = [case for case in cases if not is_slide(case)]
    groups = _volumes(others) if len(job_data.size) == 3 and not job_data.table else _files(others)
    return [*groups, *(_Group(members, job_data.tiles) for members in slides(whole))]


def _files(cases: Sequence[Case]) -> list[_Group]:
    """For a 2D size: the frames of each file."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.sha256, []).append(case)
    return [_Group(tuple(members), len(members)) for members in groups.values()]


def _volumes(cases: Sequence[Case]) -> list[_Group]:
    """For a 3D size: each multi-frame file, and each series of single-frame files. Raises DataError for a 2D image."""
    groups: dict[str, dict[Path, Case]] = {}
    for case in cases:
        if format_named(case.format).volume is None:
            raise DataError(f"{case.image}: a 2D image can't be used at a 3D size: give the job a size of two numbers")
        whole = case.frame is not None or not case.series
        groups.setdefault(case.sha256 if whole else case.series, {})[case.image] = case
    for members in groups.values():
        if len({(case.label, case.patient) for case in members.values()}) > 1:
            first = next(iter(members))
            raise DataError(f"{first}: the slices of its series have different labels or patients: label by series")
    return [_Group(tuple(members.values()), 1) for members in groups.values()]


def _name(catalog: Catalog, job_data: DataSection, split: str) -> tuple[str, str]:
    """The cache file's name without its ending, as (what it is for, digest of what it is made of)."""
    form = "x".join(map(str, (*job_data.size, job_data.channels)))
    if job_data.bagged or (job_data.mpp, job_data.tiles) != (MPP, TILES):
        form += f"_{job_data.bag}_{job_data.mpp:g}_{job_data.tiles}"
    if job_data.spacing:
        form += "-" + "x".join(f"{step:g}mm" for step in job_data.spacing)
    if job_data.table:
        form = hashlib.sha256(json.dumps(job_data.features).encode()).hexdigest()[:12]
    made_of = json.dumps([catalog.digest(job_data.collection), split, form, _VERSION, PROBE])
    return f"{job_data.collection}-{split}-{form}-", hashlib.sha256(made_of.encode()).hexdigest()[:32]


def _cached(
    name: tuple[str, str],
    shape: tuple[int, ...],
    kind: type[Any],
    cases: Callable[[], Iterator[npt.NDArray[Any]]],
    cache: Path,
    progress: Callable[[int, int], None] | None,
    mode: Literal["r", "c"] = "r",
) -> npt.NDArray[Any]:
    """Return an array of `cases`, one after another along its first axis, from the cache or made now.

    Mapped read-only, or with mode "c" so that what is written to it stays in this process.
    """
    path, dtype = cache / f"{''.join(name)}.npy", np.dtype(kind).newbyteorder("<")
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (found := _mapped(path, shape, dtype, mode)) is not None:
            return found
        with _locked(cache / f"{name[0]}.lock"):
            if (found := _mapped(path, shape, dtype, mode)) is None:  # it may have been made while this process waited
                _write(path, shape, dtype, cases(), progress)
                _forget_others(cache, *name)
                found = _mapped(path, shape, dtype, mode)
    except OSError as error:
        raise DataError(
            f"{cache}: the cache of decoded images can't be written: {error.strerror}: it needs "
            f"{np.prod(shape, dtype=np.int64) * dtype.itemsize / 1e6:.0f} MB"
        ) from error
    if found is None:
        raise DataError(f"{path}: the cache of decoded images is damaged as soon as it is written: check the disk")
    return found


def _mapped(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], mode: Literal["r", "c"]
) -> npt.NDArray[Any] | None:
    """Map the cache file, or return None when there is none or it is not whole."""
    try:
        found = np.load(path, mmap_mode=mode, allow_pickle=False)
        whole = path.stat().st_size == found.offset + found.nbytes
    except (FileNotFoundError, ValueError, EOFError, AttributeError, SyntaxError):
        return None
    return found if whole and found.shape == shape and found.dtype == dtype else None


def _write(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    cases: Iterator[npt.NDArray[Any]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the array case by case beside `path`, then rename it into place.

    By plain writes rather than through a map: on a full disk a write fails with an error, a map kills the process.
    """
    temporary = path.with_suffix(".partial")  # one writer at a time: the lock is held
    try:
        with temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for done, case in enumerate(cases, start=1):
                file.write(np.ascontiguousarray(case, dtype=dtype).data)
                if progress is not None:
                    progress(done, shape[0])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _forget_others(cache: Path, what_for: str, digest: str) -> None:
    """Remove what the same split was before data was added. A process that still maps it keeps its map."""
    for old in cache.iterdir():
        stem = old.name.removesuffix(".npy").removesuffix(".partial")
        if old.suffix != ".lock" and stem.startswith(what_for) and stem != what_for + digest:
            old.unlink(missing_ok=True)


def _decoded(groups: Sequence[_Group], job_data: DataSection) -> Iterator[Pixels]:
    """Yield each case as (C, *size), in the groups' order. Raises DataError naming the file."""
    for group in groups:
        for case in group.members:
            _check_unchanged(case)
        first = group.members[0]
        kind = format_named(first.format)
        count = 0
        try:
            if job_data.table:
                count += 1
                yield _row(first, job_data.features)
                continue
            if job_data.bagged or kind.tiles is not None:
                count = group.cases
                yield from bagged_cases(group.members, job_data)
                continue
            if len(job_data.size) == 3 and kind.volume is not None:
                images: Iterator[Pixels] = iter([kind.volume([case.image for case in group.members])])
            else:
                images = kind.frames(first.image)
            for image, spacing in zip(images, _spacings(group, job_data), strict=False):
                count += 1
                yield as_case(image, job_data, spacing)
        except FileRefusedError as error:
            raise DataError(f"{first.image}: {error}") from error
        if count != group.cases:
            raise DataError(f"{first.image}: it has {count} frames, but had {group.cases}: import its folder again")


def _grid(group: _Group) -> Grid:
    """Where the slices or frames of a group lie. Raises FileRefusedError."""
    kind = format_named(group.members[0].format)
    if kind.grid is None:
        return Grid(tuple((0, frame) for frame in range(group.cases)))
    return kind.grid([case.image for case in group.members[: 1 if group.cases > 1 else None]])


def _spacings(group: _Group, job_data: DataSection) -> Iterator[tuple[float, ...] | None]:
    """Each case's distance between pixels in mm; None where the job does not ask. Raises FileRefusedError."""
    if not job_data.spacing:
        yield from itertools.repeat(None)
    spacing = _grid(group).spacing
    if spacing is None:
        raise FileRefusedError("it does not say how far its pixels lie apart: a job with data.spacing can't use it")
    yield from itertools.repeat(spacing[-len(job_data.size) :])


def drawn_truth(
    kit: Path, groups: Sequence[_Group], job_data: DataSection, task: TaskSection
) -> Iterator[npt.NDArray[Any]]:
    """Yield each case's mask (*size) or boxes (M, 1 + 2 axes), in the groups' order. Raises DataError."""
    boxed, axes = kind_of(task.kind).truth == "boxes", len(job_data.size)
    for group in groups:
        members = [read(kit, case.annotation) for case in {case.image: case for case in group.members}.values()]
        grid = _grid(group) if axes == 3 else None
        for frame, spacing in zip(range(group.cases), _spacings(group, job_data), strict=False):
            try:
                if boxed:
                    if grid is not None and len(members) > 1:
                        raise DataError("boxes of a series of files are not read: give them with one file a volume")
                    found = boxes_of(members[0], task.labels, None if grid else frame)
                    yield as_boxes(found, members[0].extent[-axes:], job_data, most_boxes(task), spacing)
                    continue
                masks = [mask_of(one, task.labels) for one in members]
                drawn = masks[0][frame] if grid is None else np.stack([masks[file][at] for file, at in grid.order])
                yield as_mask(drawn, job_data, spacing)
            except DataError as error:
                raise DataError(f"{group.members[0].image}: {error}") from error


def _row(case: Case, features: Sequence[str]) -> Pixels:
    """The features of one row, (F,). Raises FileRefusedError for an image."""
    if case.format != "table":
        raise FileRefusedError("an image is no row of a table: leave data.features out")
    return vector(read_values(case.image), features)


def _check_unchanged(case: Case) -> None:
    """Raise DataError unless the file is the one that was imported: by size and time, else by content."""
    try:
        found = case.image.stat()
        same = (found.st_size, found.st_mtime_ns) == (case.size, case.mtime_ns)
        if same or (found.st_size == case.size and sha256_file(case.image) == case.sha256):
            return
    except OSError as error:
        raise DataError(
            f"{case.image}: an imported file can't be read: {error.strerror}: import its folder again"
        ) from error
    raise DataError(f"{case.image}: the file has changed since it was imported: import its folder again")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
