"""Text in pixels: found where it may stand, blanked where that is asked for, and not seen where there is none."""

from __future__ import annotations

import socket
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.uid import RLELossless

from client.intake.deidentification.burned_in import is_at_risk, text_regions
from client.intake.deidentification.deidentifier import Deidentifier, Method
from client.intake.identity import Pseudonyms
from client.intake.image import FileRefusedError

LOOKING = Deidentifier(Method(), Pseudonyms(b"k" * 32))
CLEANING = Deidentifier(Method(clean_pixels=True), Pseudonyms(b"k" * 32))


def scan(text: str, *, box=(200, 260)) -> np.ndarray:
    """A smooth, noisy blob as of an ultrasound image, with a text beside it."""
    y, x = np.mgrid[: box[0], : box[1]]
    noise = np.random.default_rng(0).normal(0, 12, box)
    blob = 120 * np.exp(-(((y - 120) / 45) ** 2) - ((x - 130) / 60) ** 2)
    picture = Image.fromarray(np.clip(blob + noise * (blob > 8), 0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).text((8, 6), text, fill=235, font=ImageFont.load_default(size=15))
    return np.asarray(picture)


def shown(content: bytes) -> np.ndarray:
    return pydicom.dcmread(BytesIO(content)).pixel_array


def test_a_name_in_the_pixels_is_found_without_asking_the_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was asked"))
    found = text_regions(scan("DOE JANE 1961-12-24"))
    assert found
    assert all(region.bottom < 40 for region in found)
    assert text_regions(scan("")) == []


def test_a_file_of_a_modality_at_risk_with_text_is_refused_with_its_reason(write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", pixels=scan("DOE JANE"), Modality="US", BurnedInAnnotation=None)
    with pytest.raises(FileRefusedError, match=r"burned-in text: found in the pixels, in 1 places: --clean-pixels"):
        LOOKING.made(path)
    empty = write_dicom(tmp_path / "b.dcm", pixels=scan(""), Modality="US", BurnedInAnnotation=None)
    assert np.array_equal(shown(LOOKING.made(empty).content), scan(""))


def test_text_is_blanked_and_the_rest_of_the_image_stays(write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", pixels=scan("DOE JANE"), Modality="US", BurnedInAnnotation="YES")
    made = CLEANING.made(path)
    copy = pydicom.dcmread(BytesIO(made.content))
    assert text_regions(shown(made.content)) == []
    assert np.array_equal(copy.pixel_array[40:], scan("DOE JANE")[40:])
    assert (copy.BurnedInAnnotation, made.treatment.regions) == ("NO", 1)
    assert "113101" in [item.CodeValue for item in copy.DeidentificationMethodCodeSequence]


def test_cleaned_pixels_of_a_compressed_colour_file_are_written_back_uncompressed(write_dicom, tmp_path):
    colour = np.stack([scan("ROE RICHARD")] * 3, axis=-1)
    path = write_dicom(tmp_path / "a.dcm", pixels=colour, Modality="XC", BurnedInAnnotation=None)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    copy = pydicom.dcmread(BytesIO(CLEANING.made(path).content))
    assert copy.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
    assert np.array_equal(copy.pixel_array[40:], colour[40:])
    assert not copy.pixel_array[8:20, 10:60].any()


def test_all_around_an_ultrasounds_regions_is_blanked(write_dicom, tmp_path):
    item = pydicom.Dataset()
    item.RegionLocationMinX0, item.RegionLocationMinY0, item.RegionLocationMaxX1, item.RegionLocationMaxY1 = (
        60,
        60,
        200,
        180,
    )
    path = write_dicom(tmp_path / "a.dcm", pixels=scan("") + 1, Modality="US", SequenceOfUltrasoundRegions=[item])
    pixels = shown(CLEANING.made(path).content)
    assert np.array_equal(pixels[60:181, 60:201], (scan("") + 1)[60:181, 60:201])
    pixels[60:181, 60:201] = 1
    assert len(np.unique(pixels)) == 1


def test_a_declared_text_that_is_not_found_is_no_reason_to_trust_the_pixels(write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", pixels=scan(""), Modality="CR", BurnedInAnnotation="YES")
    for deidentifier in (LOOKING, CLEANING):
        with pytest.raises(FileRefusedError, match="burned-in annotation: the file declares text"):
            deidentifier.made(path)


@pytest.mark.parametrize(
    ("attributes", "risk"),
    [({"Modality": "US"}, True), ({"Modality": "MR"}, False), ({"Modality": "CT", "BurnedInAnnotation": "YES"}, True),
     ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True), ({}, True),
     ({"Modality": "CT", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True)],
)  # fmt: skip
def test_text_is_looked_for_where_it_often_stands(attributes, risk):
    header = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    assert is_at_risk(header) is risk


@pytest.mark.slow
def test_names_in_real_ultrasound_images_are_found_and_blanked():
    deid_data = pytest.importorskip("deid_data", reason="the package deid-data, with real ultrasound images, is absent")
    folder = Path(deid_data.__file__).parent / "data" / "ultrasounds"
    for name in ("GREYSCALE_IMAGE.dcm", "RGB_IMAGE.dcm"):  # the second has no flag
        with pytest.raises(FileRefusedError, match="burned-in text: found"):
            LOOKING.made(folder / name)
    made = CLEANING.made(folder / "RGB_IMAGE.dcm")
    assert made.treatment.regions > 10
    assert not shown(made.content)[10:25, 10:200].any()  # the name was there
