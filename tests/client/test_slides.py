"""Whole-slide images: what of a slide becomes cases, what is refused, and what is never in memory."""

from __future__ import annotations

import re

import numpy as np
import openslide
import pytest
import tifffile
from pydicom import dcmread

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.intake import slide
from client.intake.formats import identify
from client.intake.image import Cut, FileRefusedError
from client.intake.importer import ImportOptions, import_folder
from client.intake.pyramid import Level, open_pyramid
from client.intake.tissue import BLOCK, Place, chosen, overview, read_tile, tissue_places
from common.errors import DataError
from common.job import DataSection
from simulations.slide_files import write_dicom, write_tiff
from simulations.slides import LABORATORIES, draw_slide, write_laboratory

ALL_TRAIN = ImportOptions(fractions=(1.0, 0.0, 0.0))
BAG = DataSection(collection="slides", bag="slide", size=(12, 32, 32), channels=3, mpp=2.0)
TILES = DataSection(collection="slides", size=(32, 32), channels=3, mpp=2.0, tiles=5)


def drawn(edge=256, *, tumour=True, seed=0):
    return draw_slide(np.random.default_rng(seed), LABORATORIES[0], tumour=tumour, edge=edge)


@pytest.fixture(scope="module")
def picture():
    return drawn()


@pytest.fixture
def aperio(shared_data):
    path = shared_data / "slide" / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip("the real slide is absent")
    return path


def tiles_of(paths):
    return np.stack(list(slide.tiles(paths, Cut(8, 32, 32, 2.0))))


def refusal(path):
    with pytest.raises(FileRefusedError) as caught:
        identify(path.read_bytes()[:1024]).inspect(path)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def test_a_real_aperio_slide_is_cut_where_its_tissue_is(aperio):
    with open_pyramid([aperio]) as pyramid:
        places = tissue_places(pyramid, Cut(16, 224, 224, 0.499))
        tile = read_tile(pyramid, Cut(16, 224, 224, 0.499), places[5])
    whole = openslide.OpenSlide(aperio).read_region((places[5].column * 224, places[5].row * 224), 0, (224, 224))
    np.testing.assert_allclose(tile, np.asarray(whole)[..., :3] / 255, atol=0.01)
    assert 35 < len(places) < 60
    assert Place(0, 0) not in places
    assert tile.mean() < 0.85


def test_a_slide_with_its_label_is_refused_and_only_what_names_a_person_is_told(kit_folder, aperio):
    report = import_folder(kit_folder, "slides", aperio.parent, options=ALL_TRAIN)
    assert report.refused[0].reason == "identifies a person: aperio.Date, label image, macro image"
    allowed = ImportOptions(allow_identified=True, fractions=(1.0, 0.0, 0.0))
    report = import_folder(kit_folder, "slides", aperio.parent, options=allowed)
    assert report.indexed == 1
    assert "b414003d" not in report.to_json()
    assert "12/29/09" not in report.to_json()


@pytest.mark.parametrize(("mpp", "factor"), [(1.0, 1), (2.0, 2), (4.0, 4)])
def test_a_tile_shows_what_the_slide_shows_at_the_asked_resolution(tmp_path, picture, mpp, factor):
    write_tiff(picture, tmp_path / "a.tif")
    edge = 32 * factor
    shown = picture[edge : 2 * edge, edge : 2 * edge].reshape(32, factor, 32, factor, 3).mean(axis=(1, 3)) / 255
    with open_pyramid([tmp_path / "a.tif"]) as pyramid:
        np.testing.assert_allclose(read_tile(pyramid, Cut(1, 32, 32, mpp), Place(1, 1)), shown, atol=0.005)


def test_tiff_and_dicom_give_the_same_tiles_and_jpeg_nearly(tmp_path, picture):
    tiff = tiles_of([write_tiff(picture, tmp_path / "a.tif")])
    plain = sorted(write_dicom(picture, tmp_path / "plain", "S1", patient="P1").iterdir())
    lossy = sorted(write_dicom(picture, tmp_path / "lossy", "S2", patient="P2", jpeg=True).iterdir())
    assert len(plain) == 3
    np.testing.assert_array_equal(tiff, tiles_of(plain))
    np.testing.assert_array_equal(tiff, tiles_of(plain[::-1]))
    assert np.abs(tiff - tiles_of(lossy)).mean() < 0.02


def test_tiles_are_spread_over_the_tissue_the_same_every_time():
    places = [Place(row, column) for row in range(10) for column in range(10)]
    assert chosen(places, 200) == places
    some = chosen(places, 7)
    assert some == chosen(places, 7)
    assert (len(set(some)), some[0], some[-1]) == (7, places[0], places[-1])


def test_a_slide_of_ten_thousand_million_pixels_is_never_in_memory_as_a_whole():
    asked = []

    class Huge:
        levels = (Level(100_000, 100_000, 0.25), Level(25_000, 25_000, 1.0), Level(3_125, 3_125, 8.0))

        def read(self, level, row, column, rows, columns):
            asked.append(rows * columns)
            region = np.full((rows, columns, 3), 240, dtype=np.uint8)
            region[:, : columns // 2, 1] = 80
            return region

    pyramid, cut = Huge(), Cut(64, 256, 256, 0.5)
    places = tissue_places(pyramid, cut)
    read_tile(pyramid, cut, places[0])
    assert overview(pyramid)[0].shape[0] <= 2048
    assert max(asked) <= BLOCK**2


def spoil(tmp_path, how):
    """A file that is no slide to train on."""
    path = tmp_path / "slide.tif"
    if how == "glass alone":
        return write_tiff(np.full((256, 256, 3), 243, dtype=np.uint8), path)
    if how == "no resolution":
        tifffile.imwrite(path, drawn(), tile=(128, 128), photometric="rgb", metadata=None)
        return path
    if how == "72 dpi":
        tifffile.imwrite(path, drawn(), tile=(128, 128), photometric="rgb", resolution=(72, 72), resolutionunit="INCH")
        return path
    if how == "no tiles":
        tifffile.imwrite(path, drawn())
        return path
    if how == "cut short":
        path.write_bytes(write_tiff(drawn(), path).read_bytes()[:20_000])
        return path
    path = write_dicom(drawn(), tmp_path / "dicom", "S1", patient="P1") / "level-0.dcm"
    dataset = dcmread(path)
    if how == "a label":
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    elif how == "grey":
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    elif how == "part of a concatenation":
        dataset.ConcatenationUID = "1.2.3"
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("glass alone", "no tissue on the slide"),
        ("no resolution", "does not state its resolution"),
        ("72 dpi", "does not state its resolution"),
        ("no tiles", "a TIFF that is no slide"),
        ("cut short", "damaged|can't be decoded"),
        ("a label", "label, which identifies a person: LABEL"),
        ("grey", "not in colour"),
        ("part of a concatenation", "part of a concatenation"),
    ],
)
def test_what_is_no_slide_to_train_on_is_refused_in_one_line(tmp_path, how, complaint):

    assert re.search(complaint, refusal(spoil(tmp_path, how)))


@pytest.fixture(scope="module", params=["tiff", "dicom"])
def catalog(tmp_path_factory, request):
    kit_folder, folder = tmp_path_factory.mktemp("kit"), tmp_path_factory.mktemp("slides")
    labels = write_laboratory(LABORATORIES[0], folder, 4, seed=1, dicom=request.param == "dicom", edge=256)
    report = import_folder(kit_folder, "slides", folder, labels, options=ALL_TRAIN)
    assert report.indexed == (12 if request.param == "dicom" else 4)
    return Catalog(kit_folder / CATALOG_FILE)


def test_a_slide_is_a_bag_of_its_tiles_with_the_label_of_the_slide(catalog, tmp_path):
    cases = open_cases(catalog, BAG, "train", tmp_path / "cache")
    assert cases.images.shape == (4, 3, 12, 32, 32)
    assert sorted(cases.labels) == ["normal", "normal", "tumour", "tumour"]
    assert cases.patient_count == 4
    filled = cases.images.reshape(4, 3, 12, -1).max(axis=(1, 3)) > 0
    assert filled[:, 0].all()
    assert not filled.all()  # a small slide has fewer tiles: what is left of its bag is empty, and at the end
    assert all((np.diff(row.astype(int)) <= 0).all() for row in filled)


def test_without_a_bag_each_slide_gives_the_same_number_of_tiles(catalog, tmp_path):
    cases = open_cases(catalog, TILES, "train", tmp_path / "cache")
    assert cases.images.shape == (20, 3, 32, 32)
    assert sorted(np.bincount(cases.patients)) == [5, 5, 5, 5]
    assert (cases.images.reshape(20, -1).max(axis=1) > 0).all()


def test_each_resolution_has_its_own_cache(catalog, tmp_path):
    fine = BAG.model_copy(update={"mpp": 1.0})
    first, second = (open_cases(catalog, one, "train", tmp_path / "cache").images for one in (BAG, fine))
    assert not np.array_equal(first, second)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_a_slide_is_no_volume_and_the_message_says_what_to_ask_for(catalog, tmp_path):
    with pytest.raises(DataError, match=r'data\.bag = "slide"'):
        open_cases(catalog, BAG.model_copy(update={"bag": "none"}), "train", tmp_path / "cache")
    with pytest.raises(DataError, match="a slide is a bag by itself"):
        open_cases(catalog, BAG.model_copy(update={"bag": "study"}), "train", tmp_path / "cache")


def views(folder, write_dicom, patients=3):
    """Studies of two or three views each."""
    for patient in range(patients):
        for view in range(2 + patient % 2):
            write_dicom(
                folder / f"{patient}-{view}.dcm", PatientID=f"STUDY-{patient}", StudyInstanceUID=f"1.2.{patient + 1}",
                seed=view,
            )  # fmt: skip
    labels = folder.parent / "labels.csv"
    labels.write_text("patient,label\n" + "".join(f"STUDY-{number},{'ab'[number % 2]}\n" for number in range(patients)))
    return labels


@pytest.mark.parametrize("bag", ["study", "patient"])
def test_all_views_of_a_study_or_patient_are_one_case(kit_folder, tmp_path, write_dicom, bag):
    labels = views(tmp_path / "views", write_dicom)
    import_folder(kit_folder, "views", tmp_path / "views", labels, options=ALL_TRAIN)
    data = DataSection(collection="views", bag=bag, size=(4, 16, 16))
    cases = open_cases(Catalog(kit_folder / CATALOG_FILE), data, "train", tmp_path / "cache")
    assert cases.images.shape == (3, 1, 4, 16, 16)
    seen = (cases.images.reshape(3, 4, -1).max(axis=2) > 0).sum(axis=1)
    assert sorted(seen) == [2, 2, 3]


def test_of_more_views_than_a_bag_holds_some_are_taken(kit_folder, tmp_path, write_dicom):
    labels = views(tmp_path / "views", write_dicom)
    import_folder(kit_folder, "views", tmp_path / "views", labels, options=ALL_TRAIN)
    data = DataSection(collection="views", bag="study", size=(2, 16, 16))
    cases = open_cases(Catalog(kit_folder / CATALOG_FILE), data, "train", tmp_path / "cache")
    assert (cases.images.reshape(3, 2, -1).max(axis=2) > 0).all()


def test_views_of_one_study_with_different_labels_are_named(kit_folder, tmp_path, write_dicom):
    views(tmp_path / "views", write_dicom)
    labels = tmp_path / "by-file.csv"
    labels.write_text("file,label\n" + "".join(f"{p.name},{p.name[2]}\n" for p in (tmp_path / "views").iterdir()))
    import_folder(kit_folder, "views", tmp_path / "views", labels, options=ALL_TRAIN)
    data = DataSection(collection="views", bag="study", size=(4, 16, 16))
    with pytest.raises(DataError, match="the images of a study have different labels or patients: label by study"):
        open_cases(Catalog(kit_folder / CATALOG_FILE), data, "train", tmp_path / "cache")
