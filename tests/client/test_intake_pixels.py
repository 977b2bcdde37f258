from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing

from client.intake import dicom, raster
from client.intake.image import FileRefusedError
from client.intake.intensity import Window, stretched, windowed, with_channels


def only_frame(path):
    (frame,) = dicom.frames(path)
    return frame[..., 0]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_shows_what_the_standard_says(function):
    values = np.arange(0, 4096, dtype=np.uint16).reshape(64, 64)
    header = Dataset()
    header.PhotometricInterpretation, header.BitsStored, header.PixelRepresentation = "MONOCHROME2", 12, 0
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = 1000, 600, function
    expected = apply_windowing(values, header) / 4095
    np.testing.assert_allclose(windowed(values, Window(1000, 600, function)), expected, atol=1e-6)


def test_rescale_comes_before_the_window(tmp_path, write_dicom):
    stored = np.array([[0, 1000, 1024, 1064, 1424, 4000]] * 4, dtype=np.uint16)
    path = write_dicom(
        tmp_path / "ct.dcm", pixels=stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40.5, WindowWidth=401
    )
    np.testing.assert_allclose(only_frame(path)[0], [0, (-24 + 160) / 400, 0.4, 0.5, 1, 1], atol=1e-6)


def test_monochrome1_is_turned_round(tmp_path, write_dicom):
    stored = np.array([[0, 100, 255]] * 4, dtype=np.uint8)
    plain = only_frame(write_dicom(tmp_path / "a.dcm", pixels=stored))
    turned = only_frame(write_dicom(tmp_path / "b.dcm", pixels=stored, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(turned, 1 - plain)


def test_presentation_lut_shape_inverse_and_monochrome1_turn_round_once(tmp_path, write_dicom):
    stored = np.array([[0, 100, 255]] * 4, dtype=np.uint8)
    path = write_dicom(
        tmp_path / "a.dcm", pixels=stored, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"
    )
    assert only_frame(path)[0].tolist() == pytest.approx([1, 155 / 255, 0])


def test_eight_bits_without_a_window_keep_their_full_range(tmp_path, write_dicom):
    stored = np.array([[50, 100, 200]] * 4, dtype=np.uint8)
    assert only_frame(write_dicom(tmp_path / "a.dcm", pixels=stored))[0].tolist() == pytest.approx(
        [50 / 255, 100 / 255, 200 / 255]
    )


def test_twelve_bits_without_a_window_use_the_percentiles(tmp_path, write_dicom):
    stored = np.random.default_rng(1).integers(100, 900, (64, 64), dtype=np.uint16)
    stored[0, 0] = 60_000  # a hot pixel
    shown = only_frame(write_dicom(tmp_path / "a.dcm", pixels=stored))
    assert shown.min() == 0
    assert shown.max() == 1
    assert 0.45 < np.median(shown) < 0.55


def test_padding_is_black_and_does_not_move_the_percentiles(tmp_path, write_dicom):
    stored = np.random.default_rng(1).integers(500, 900, (64, 64), dtype=np.int16)
    stored[:32] = -2000
    shown = only_frame(write_dicom(tmp_path / "a.dcm", pixels=stored, PixelPaddingValue=-2000))
    assert (shown[:32] == 0).all()
    assert 0.45 < np.median(shown[32:]) < 0.55


def test_a_window_that_the_standard_forbids_is_left_aside(tmp_path, write_dicom):
    stored = np.random.default_rng(1).integers(100, 900, (64, 64), dtype=np.uint16)
    shown = only_frame(write_dicom(tmp_path / "a.dcm", pixels=stored, WindowCenter=500, WindowWidth=0))
    assert 0.45 < np.median(shown) < 0.55


def test_functional_groups_give_each_frame_its_own_window(tmp_path, write_dicom):
    stored = np.full((2, 8, 8), 100, dtype=np.uint16)
    groups = []
    for center in (100.5, 300.5):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 401
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    shared, macro = Dataset(), Dataset()
    macro.RescaleSlope, macro.RescaleIntercept = 2, -100
    shared.PixelValueTransformationSequence = [macro]
    path = write_dicom(
        tmp_path / "a.dcm", pixels=stored,
        PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=[shared],
    )  # fmt: skip
    first, second = dicom.frames(path)
    assert first[0, 0, 0] == pytest.approx(0.5)
    assert second[0, 0, 0] == pytest.approx(0.0)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
    ],
)  # fmt: skip
def test_every_lossless_transfer_syntax_gives_the_same_pixels(name):
    reference = only_frame(get_testdata_file("MR_small.dcm"))
    np.testing.assert_array_equal(only_frame(get_testdata_file(name)), reference)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("JPGExtended.dcm", (1, 1024, 256, 1)), ("JPEGLSNearLossless_16.dcm", None),
        ("JPEG2000.dcm", (1, 1024, 256, 1)),
        ("SC_rgb_jpeg_dcmtk.dcm", (1, 100, 100, 3)), ("SC_rgb_rle_2frame.dcm", (2, 100, 100, 3)),
        ("SC_rgb_rle_32bit_2frame.dcm", (2, 100, 100, 3)), ("examples_palette.dcm", (1, 350, 800, 3)),
        ("examples_ybr_color.dcm", (30, 240, 320, 3)), ("image_dfl.dcm", (1, 512, 512, 1)),
        ("SC_ybr_full_422_uncompressed.dcm", (1, 100, 100, 3)), ("GDCMJ2K_TextGBR.dcm", (1, 400, 400, 3)),
    ],
)  # fmt: skip
def test_lossy_colour_palette_and_multi_frame_files_are_read(name, shape):
    frames = np.stack(list(dicom.frames(get_testdata_file(name))))
    assert shape is None or frames.shape == shape
    assert frames.dtype == np.float32
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert frames.std() > 0.01


def test_a_colour_reaches_the_network_as_it_is_in_the_file():
    path = get_testdata_file("SC_rgb_rle.dcm")
    (frame,) = dicom.frames(path)
    np.testing.assert_allclose(frame, pydicom.dcmread(path).pixel_array / 255, atol=1e-6)


def test_pixels_cut_short_are_refused_with_the_reason():
    with pytest.raises(FileRefusedError, match="less than expected"):
        dicom.inspect(get_testdata_file("MR_truncated.dcm"))


def test_a_constant_image_is_black_and_no_error():
    assert (stretched(np.full((4, 4), 7.0)) == 0).all()


def test_infinite_values_do_not_spread():
    values = np.linspace(0, 1, 1000).reshape(10, 100)
    values[0, 0], values[0, 1] = np.inf, np.nan
    shown = stretched(values)
    assert np.isfinite(shown).all()
    assert shown[0, 0] == 1
    assert shown[0, 1] == pytest.approx(0, abs=1e-6)


def test_colour_becomes_grey_by_its_luma_and_grey_becomes_colour_by_repetition():
    green = np.zeros((2, 2, 3), dtype=np.float32)
    green[..., 1] = 1
    assert with_channels(green, 1)[0, 0] == pytest.approx(0.587)
    assert with_channels(green[..., :1], 3).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 1), ("LA", 1), ("I;16", 1)]
)
def test_png_of_every_mode_is_read(tmp_path, mode, channels):
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 255, (16, 12)).astype(np.uint8)
    image = Image.fromarray(values.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(values).convert(mode)
    image.save(tmp_path / "a.png")
    facts = raster.inspect(tmp_path / "a.png")
    assert (facts.rows, facts.columns, facts.channels) == (16, 12, channels)


def test_a_photograph_that_names_its_author_is_flagged(tmp_path):
    from PIL import Image

    image = Image.new("L", (8, 8))
    exif = image.getexif()
    exif[0x013B] = "A. Photographer"
    image.save(tmp_path / "a.jpg", exif=exif)
    assert raster.inspect(tmp_path / "a.jpg").identifiers == ("Artist",)
