"""The cases of a collection as one array: decoded once, then mapped from a cache that every epoch reads.

How a case becomes an array: intensities in [0, 1] as the file's format makes them (`client/intake/intensity.py`); grey
or colour as the job wants it (colour to grey by BT.601 luma, grey to colour by repetition); then stretched to the job's
size, not keeping the aspect, by an antialiased triangle filter along each axis.

For a 2D size each frame of a file, and each axial slice of a NIfTI volume, is a case. For a 3D size a multi-frame file,
a NIfTI volume, or the single-frame files of one DICOM series are a case.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.catalog import Case, Catalog
from client.intake.formats import PROBE, format_named
from client.intake.image import FileRefusedError, Pixels
from client.intake.intensity import with_channels
from client.intake.table import read_values, vector
from common.errors import DataError
from common.files import sha256_file
from common.job import DataSection

_VERSION = 1


@dataclass(frozen=True)
class CaseSet:
    """The decoded cases of one split.

    Shapes: images (N, C, *size) float32 in [0, 1], mapped read-only from the cache, or for tables (N, F) float32 of any
    range; labels N; patients (N,) int64, from 0 to patient_count - 1.
    """

    images: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    patients: npt.NDArray[np.int64]

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
    progress: Callable[[int, int], None] | None = None,
) -> CaseSet:
    """Return a split's cases in the form that the job wants; the first call decodes them, later ones map the cache.

    Memory: one file or volume at a time, whatever the collection's size. Two processes may call this at once: the
    second waits for the first. `progress` is called with (cases done, cases in all) while decoding.

    Raises
    ------
    DataError
        The collection is unknown, has no case in the split, has no labels; a file is gone, changed or can't be
        decoded; an image does not fit the size (2D images, 3D size); or the cache can't be written (disk full).
    """
    cases = catalog.cases(job_data.collection, split)
    if not cases:
        raise DataError(f'the collection "{job_data.collection}" has no image in its {split} split: import more')
    if unlabelled := sum(case.label is None for case in cases):
        raise DataError(
            f'the collection "{job_data.collection}" has {unlabelled} images without a label in its {split} split: '
            "import their folder with --labels"
        )
    groups = _volumes(cases) if len(job_data.size) == 3 and not job_data.table else _files(cases)
    images = _cached(_name(catalog, job_data, split), groups, job_data, cache, progress)
    owners = [group.members[0] for group in groups for _ in range(group.cases)]
    index = {patient: at for at, patient in enumerate(dict.fromkeys(owner.patient for owner in owners))}
    patients = np.array([index[owner.patient] for owner in owners], dtype=np.int64)
    return CaseSet(images, tuple(owner.label or "" for owner in owners), patients)


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
    if job_data.table:
        form = hashlib.sha256(json.dumps(job_data.features).encode()).hexdigest()[:12]
    made_of = json.dumps([catalog.digest(job_data.collection), split, form, _VERSION, PROBE])
    return f"{job_data.collection}-{split}-{form}-", hashlib.sha256(made_of.encode()).hexdigest()[:32]


def _cached(
    name: tuple[str, str],
    groups: Sequence[_Group],
    job_data: DataSection,
    cache: Path,
    progress: Callable[[int, int], None] | None,
) -> npt.NDArray[np.float32]:
    count = sum(group.cases for group in groups)
    form = (len(job_data.features),) if job_data.table else (job_data.channels, *job_data.size)
    shape = (count, *form)
    path = cache / f"{''.join(name)}.npy"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (images := _mapped(path, shape)) is not None:
            return images
        with _locked(cache / f"{name[0]}.lock"):
            if (images := _mapped(path, shape)) is None:  # it may have been made while this process waited
                _write(path, shape, _decoded(groups, job_data), progress)
                _forget_others(cache, *name)
                images = _mapped(path, shape)
    except OSError as error:
        raise DataError(
            f"{cache}: the cache of decoded images can't be written: {error.strerror}: it needs "
            f"{np.prod(shape, dtype=np.int64) * 4 / 1e6:.0f} MB"
        ) from error
    if images is None:
        raise DataError(f"{path}: the cache of decoded images is damaged as soon as it is written: check the disk")
    return images


def _mapped(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """Map the cache file, or return None when there is none or it is not whole."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        whole = path.stat().st_size == images.offset + images.nbytes
    except (FileNotFoundError, ValueError, EOFError, AttributeError, SyntaxError):
        return None
    return images if whole and images.shape == shape and images.dtype == np.float32 else None


def _write(
    path: Path, shape: tuple[int, ...], cases: Iterator[Pixels], progress: Callable[[int, int], None] | None
) -> None:
    """Write the array case by case beside `path`, then rename it into place.

    By plain writes rather than through a map: on a full disk a write fails with an error, a map kills the process.
    """
    temporary = path.with_suffix(".partial")  # one writer at a time: the lock is held
    try:
        with temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for done, case in enumerate(cases, start=1):
                file.write(np.ascontiguousarray(case, dtype="<f4").data)
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
            if len(job_data.size) == 3 and kind.volume is not None:
                images: Iterator[Pixels] = iter([kind.volume([case.image for case in group.members])])
            else:
                images = kind.frames(first.image)
            for image in images:
                count += 1
                yield as_case(image, job_data)
        except FileRefusedError as error:
            raise DataError(f"{first.image}: {error}") from error
        if count != group.cases:
            raise DataError(f"{first.image}: it has {count} frames, but had {group.cases}: import its folder again")


def _row(case: Case, features: Sequence[str]) -> Pixels:
    """The features of one row, (F,). Raises FileRefusedError for an image."""
    if case.format != "table":
        raise FileRefusedError("an image is no row of a table: leave data.features out")
    return vector(read_values(case.image), features)


def as_case(image: Pixels, job_data: DataSection) -> Pixels:
    """Return an image or volume (*extent, C) in the form that the job wants: (C, *size)."""
    return _resized(with_channels(image, job_data.channels), job_data.size)


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


def _resized(image: Pixels, size: tuple[int, ...]) -> Pixels:
    """(*extent, C) to (C, *size). The triangle filter is separable: a volume is resized in its slices, then across."""
    channels = np.moveaxis(image, -1, 0)
    if len(size) == 2:
        return np.stack([_resized_plane(channel, (size[0], size[1])) for channel in channels])
    slices, rows, columns = size
    volumes = []
    for channel in channels:
        planes = np.stack([_resized_plane(plane, (rows, columns)) for plane in channel])
        across = _resized_plane(planes.reshape(len(planes), -1), (slices, rows * columns))
        volumes.append(across.reshape(slices, rows, columns))
    return np.stack(volumes)


def _resized_plane(plane: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (rows, columns) by a triangle filter whose support grows with the reduction, so nothing aliases."""
    if plane.shape == size:
        return plane
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))  # mode "F"
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized, dtype=np.float32), 0, 1)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
