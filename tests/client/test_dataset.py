from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.intake.importer import ImportOptions, import_folder
from common.errors import DataError
from common.job import DataSection

PROJECT = Path(__file__).resolve().parents[2]
ALL_TRAIN = ImportOptions(fractions=(1.0, 0.0, 0.0))
CHEST = DataSection(collection="chest", size=(16, 16))


@pytest.fixture
def catalog(kit_folder, hospital) -> Catalog:
    import_folder(kit_folder, "chest", *hospital, options=ALL_TRAIN)
    return Catalog(kit_folder / CATALOG_FILE)


def labelled(tmp_path, folder, key="file") -> Path:
    """A label file that gives every file of a folder the label x."""
    labels = tmp_path / "labels.csv"
    rows = [f"{path.relative_to(folder)},x" for path in sorted(folder.rglob("*")) if path.is_file()]
    labels.write_text(f"{key},label\n" + "\n".join(rows))
    return labels


def test_cases_are_one_array_with_labels_and_patients(catalog, tmp_path):
    cases = open_cases(catalog, CHEST, "train", tmp_path / "cache")
    assert cases.images.shape == (24, 1, 16, 16)
    assert cases.images.dtype == np.float32
    assert isinstance(cases.images, np.memmap)
    assert not cases.images.flags.writeable
    assert 0 <= cases.images.min() < cases.images.max() <= 1
    assert (len(cases.labels), set(cases.labels)) == (24, {"sick", "well"})
    assert cases.patients.dtype == np.int64
    assert cases.patient_count == 12
    assert sorted(np.bincount(cases.patients)) == [2] * 12
    for patient in range(12):
        assert len({label for label, owner in zip(cases.labels, cases.patients, strict=True) if owner == patient}) == 1


def test_decoding_is_done_once(catalog, tmp_path, hospital):
    first = open_cases(catalog, CHEST, "train", tmp_path / "cache")
    folder, _ = hospital
    for path in folder.rglob("*.dcm"):
        path.unlink()
    second = open_cases(catalog, CHEST, "train", tmp_path / "cache")
    np.testing.assert_array_equal(first.images, second.images)
    assert first.labels == second.labels


def test_each_size_and_colour_has_its_own_cache_and_new_data_replaces_the_old(
    kit_folder, catalog, tmp_path, hospital, write_dicom
):
    cache = tmp_path / "cache"
    colour = DataSection(collection="chest", size=(16, 16), channels=3)
    open_cases(catalog, CHEST, "train", cache)
    assert open_cases(catalog, colour, "train", cache).images.shape == (24, 3, 16, 16)
    assert len(list(cache.glob("*.npy"))) == 2
    folder, labels = hospital
    write_dicom(folder / "new.dcm", PatientID="STUDY-000")
    import_folder(kit_folder, "chest", folder, labels)
    assert len(open_cases(catalog, CHEST, "train", cache).labels) == 25
    assert len(list(cache.glob("*.npy"))) == 2


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "noise", "other shape"])
def test_a_damaged_cache_is_noticed_and_made_again(catalog, tmp_path, damage):
    cache = tmp_path / "cache"
    whole = np.array(open_cases(catalog, CHEST, "train", cache).images)
    (path,) = cache.glob("*.npy")
    content = path.read_bytes()
    path.unlink()
    if damage == "other shape":
        with path.open("wb") as file:
            np.save(file, whole[:5])
    else:
        spoiled = {"cut": content[:-1], "longer": content + b"x", "empty": b"", "noise": os.urandom(len(content))}
        path.write_bytes(spoiled[damage])
    np.testing.assert_array_equal(open_cases(catalog, CHEST, "train", cache).images, whole)


def test_two_processes_may_make_the_cache_at_once(kit_folder, catalog, tmp_path):
    script = f"""
from pathlib import Path
from client.catalog import Catalog
from client.dataset import open_cases
from common.job import DataSection
cases = open_cases(Catalog(Path({str(kit_folder / CATALOG_FILE)!r})), DataSection(collection="chest", size=(16, 16)),
                   "train", Path({str(tmp_path / "cache")!r}))
print(float(cases.images.sum()))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE) for _ in range(2)
    ]
    results = {process.communicate(timeout=600)[0] for process in processes}
    assert len(results) == 1
    assert b"" not in results
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(kit_folder, catalog, tmp_path):
    """A limit on the size of files stands in for a full disk: writes fail the same way."""
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
from client.catalog import Catalog
from client.dataset import open_cases
from common.errors import DataError
from common.job import DataSection
try:
    open_cases(Catalog(Path({str(kit_folder / CATALOG_FILE)!r})), DataSection(collection="chest", size=(64, 64)),
               "train", Path({str(tmp_path / "cache")!r}))
except DataError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert "the cache of decoded images can't be written" in result.stdout, result.stderr
    assert result.stdout.count("\n") == 1
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("change", ["gone", "altered"])
def test_a_file_that_changed_since_the_import_is_named(catalog, tmp_path, hospital, write_dicom, change):
    folder, _ = hospital
    path = folder / "p5" / "1.dcm"
    path.unlink()
    if change == "altered":
        write_dicom(path, PatientID="STUDY-005", seed=77)
    with pytest.raises(DataError, match=r"p5/1\.dcm: .*import its folder again"):
        open_cases(catalog, CHEST, "train", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


@pytest.mark.parametrize(
    ("section", "split", "complaint"),
    [
        (DataSection(collection="nothing"), "train", 'no collection "nothing"'),
        (CHEST, "validation", "no image in its validation split"),
        (DataSection(collection="unlabelled"), "train", "without a label"),
    ],
)
def test_a_collection_that_cannot_be_used_is_one_clear_line(
    kit_folder, catalog, hospital, tmp_path, section, split, complaint
):
    import_folder(kit_folder, "unlabelled", hospital[0], options=ALL_TRAIN)
    with pytest.raises(DataError, match=complaint):
        open_cases(catalog, section, split, tmp_path / "cache")


def test_a_2d_image_at_a_3d_size_is_named(kit_folder, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "images" / "a.png")
    labels = labelled(tmp_path, tmp_path / "images")
    import_folder(kit_folder, "photos", tmp_path / "images", labels, options=ALL_TRAIN)
    with pytest.raises(DataError, match=r"a\.png: a 2D image can't be used at a 3D size"):
        open_cases(
            Catalog(kit_folder / CATALOG_FILE),
            DataSection(collection="photos", size=(8, 16, 16)),
            "train",
            tmp_path / "c",
        )


def test_a_smaller_size_averages_rather_than_picks(kit_folder, tmp_path, write_dicom):
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write_dicom(tmp_path / "images" / "a.dcm", pixels=board)
    import_folder(kit_folder, "chest", tmp_path / "images", labelled(tmp_path, tmp_path / "images"), options=ALL_TRAIN)
    cases = open_cases(Catalog(kit_folder / CATALOG_FILE), CHEST, "train", tmp_path / "cache")
    np.testing.assert_allclose(cases.images[0, 0, 2:-2, 2:-2], 0.5, atol=0.02)


def test_frames_of_one_file_are_cases_in_2d_and_slices_in_3d(kit_folder, tmp_path, write_dicom):
    stored = np.arange(10, dtype=np.uint8)[:, None, None] * np.full((1, 20, 20), 20, dtype=np.uint8)
    write_dicom(tmp_path / "images" / "a.dcm", pixels=stored)
    import_folder(kit_folder, "chest", tmp_path / "images", labelled(tmp_path, tmp_path / "images"), options=ALL_TRAIN)
    catalog = Catalog(kit_folder / CATALOG_FILE)
    flat = open_cases(catalog, CHEST, "train", tmp_path / "cache")
    assert (flat.images.shape, flat.patient_count) == ((10, 1, 16, 16), 1)
    np.testing.assert_allclose(flat.images.mean(axis=(1, 2, 3)), np.arange(10) * 20 / 255, atol=1e-6)
    solid = open_cases(catalog, DataSection(collection="chest", size=(10, 8, 8)), "train", tmp_path / "cache")
    assert solid.images.shape == (1, 1, 10, 8, 8)
    assert (np.diff(solid.images[0, 0].mean(axis=(1, 2))) >= 0).all()


def test_the_series_of_a_real_patient_are_volumes(kit_folder, shared_data, tmp_path):
    folder = shared_data / "brain_mri_dicom"
    labels = labelled(tmp_path, folder)
    options = ImportOptions(fractions=(1.0, 0.0, 0.0), allow_identified=True)
    import_folder(kit_folder, "brain", folder, labels, options=options)
    cases = open_cases(
        Catalog(kit_folder / CATALOG_FILE),
        DataSection(collection="brain", size=(16, 32, 32)),
        "train",
        tmp_path / "cache",
    )
    assert cases.images.shape == (5, 1, 16, 32, 32)
    assert cases.patient_count == 1
    assert (cases.images.std(axis=(1, 2, 3, 4)) > 0.02).all()


def test_real_volumes_are_cases_in_3d_and_their_slices_in_2d(kit_folder, shared_data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((shared_data / "hippocampus_mri" / "images").iterdir())[:4]:
        (folder / path.name).symlink_to(path)
    import_folder(kit_folder, "hippo", folder, labelled(tmp_path, folder), options=ALL_TRAIN)
    catalog = Catalog(kit_folder / CATALOG_FILE)
    solid = open_cases(catalog, DataSection(collection="hippo", size=(32, 32, 32)), "train", tmp_path / "cache")
    assert (solid.images.shape, solid.patient_count) == ((4, 1, 32, 32, 32), 4)
    flat = open_cases(catalog, DataSection(collection="hippo", size=(32, 32)), "train", tmp_path / "cache")
    assert flat.patient_count == 4
    assert len(flat.labels) == catalog.summary("hippo").images > 80


def test_memory_does_not_grow_with_the_collection(kit_folder, tmp_path, write_dicom):
    folder = tmp_path / "images"
    for number in range(60):
        write_dicom(folder / f"{number}.dcm", pixels=np.full((8, 8), number, dtype=np.uint8), PatientID=f"S{number}")
    import_folder(kit_folder, "chest", folder, labelled(tmp_path, folder), options=ALL_TRAIN)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    section = DataSection(collection="chest", size=(1024, 1024))
    cases = open_cases(Catalog(kit_folder / CATALOG_FILE), section, "train", tmp_path / "cache")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert cases.images.nbytes > 250e6
    assert grown < 100e6
