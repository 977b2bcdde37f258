"""A slide's heat map: each tile's value where the tile is, in files that slide viewers and a PACS read."""

from __future__ import annotations

import highdicom
import numpy as np
import openslide
import pytest
import tifffile
import torch
from pydicom import dcmread

from client.results.heat_map import HeatMap, scan_slide
from client.results.heat_map_files import coloured, write_heat_map
from common.errors import UsageError
from common.job import parse_job
from common.networks import build_network
from common.tasks.registry import build_task
from simulations.slide_files import write_dicom, write_tiff
from simulations.slides import LABORATORIES, draw_slide

EDGES = (64.0, 64.0)


def job(bag):
    size, network = ("[8, 32, 32]", "attention-mil") if bag else ("[32, 32]", "small-cnn")
    return parse_job(f"""
name = "j"
sites = ["a"]
[task]
labels = ["normal", "tumour"]
[data]
collection = "slides"
size = {size}
bag = "{"slide" if bag else "none"}"
channels = 3
mpp = 2.0
[network]
name = "{network}"
parameters = {{ width = 8 }}
""")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """One picture as a TIFF and as DICOM."""
    folder = tmp_path_factory.mktemp("slides")
    picture = draw_slide(np.random.default_rng(4), LABORATORIES[0], tumour=True, edge=384)
    tiff = write_tiff(picture, folder / "a.tif")
    return {"tiff": [tiff], "dicom": sorted(write_dicom(picture, folder / "d", "S1", patient="P1").iterdir())}


def scan(paths, *, bag=True):
    a_job = job(bag)
    return scan_slide(build_network(a_job), build_task(a_job), paths, a_job.data, torch.device("cpu"))


def test_every_tissue_tile_has_a_score_and_its_share_of_attention(slides):
    found, again = scan(slides["tiff"]), scan(slides["dicom"])
    assert found.grid == (6, 6)
    assert found.scores.shape == (len(found.places), 2)
    np.testing.assert_allclose(found.attention.sum(), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.attention, again.attention)
    shown = found.of_attention()
    assert np.isfinite(shown.values).sum() == len(found.places) < 36
    assert np.nanmax(shown.values) == 1
    assert shown.edges == EDGES


def test_a_network_of_single_tiles_has_scores_and_no_attention(slides):
    found = scan(slides["tiff"], bag=False)
    assert np.isfinite(found.of_label(1, "tumour").values).sum() == len(found.places)
    with pytest.raises(UsageError, match="no attention"):
        found.of_attention()


def test_a_slide_viewer_opens_the_tiff_and_knows_its_scale(slides, tmp_path):
    heat = scan(slides["tiff"]).of_attention()
    path = write_heat_map(heat, tmp_path / "heat.tif", slides["tiff"])
    with openslide.OpenSlide(path) as opened, openslide.OpenSlide(slides["tiff"][0]) as source:
        wide, scale = opened.dimensions[0], float(opened.properties["openslide.mpp-x"])
        assert wide * scale == pytest.approx(source.dimensions[0] * float(source.properties["openslide.mpp-x"]))
        assert opened.level_count > 1
    pixels = tifffile.imread(path)
    np.testing.assert_array_equal(pixels[4::8, 4::8], coloured(heat.values))
    assert (pixels[4::8, 4::8][np.isnan(heat.values)] == 255).all()


def test_the_dicom_map_holds_the_values_and_belongs_to_the_slide(slides, tmp_path):
    heat, source = scan(slides["dicom"]).of_label(1, "tumour"), dcmread(slides["dicom"][0])
    path = write_heat_map(heat, tmp_path / "heat.dcm", slides["dicom"])
    read = highdicom.imread(path)
    values = read.get_total_pixel_matrix(apply_real_world_transform=True)
    np.testing.assert_allclose(values, np.nan_to_num(heat.values), atol=1e-4)
    assert read.SOPClassUID.name == "Parametric Map Storage"
    for keyword in ("StudyInstanceUID", "PatientID", "FrameOfReferenceUID", "ContainerIdentifier"):
        assert read[keyword].value == source[keyword].value
    assert read.get_source_image_uids()[0][2] == source.SOPInstanceUID
    assert list(read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing) == [0.064, 0.064]


def test_the_dicom_map_lies_where_the_tiles_lie_on_the_slide(slides, tmp_path):
    path = write_heat_map(scan(slides["dicom"]).of_attention(), tmp_path / "heat.dcm", slides["dicom"])

    def corners(image):
        """The outer corners of the first pixel, and of where 192 micrometres further would be, in mm on the slide."""
        pixels = 0.192 / image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]
        to_slide = highdicom.spatial.ImageToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
        return to_slide(np.array([[0.0, 0.0], [pixels, pixels]]))

    np.testing.assert_allclose(
        corners(highdicom.imread(path)), corners(highdicom.imread(slides["dicom"][0])), atol=1e-6
    )


@pytest.mark.parametrize(("name", "complaint"), [("heat.png", "written as"), ("heat.dcm", "belongs to a DICOM slide")])
def test_what_can_not_be_written_is_said_and_nothing_is_left(slides, tmp_path, name, complaint):
    heat = HeatMap(np.zeros((2, 2), dtype=np.float32), "attention", EDGES)
    with pytest.raises(UsageError, match=complaint):
        write_heat_map(heat, tmp_path / name, slides["tiff"])
    assert not list(tmp_path.iterdir())
