"""No identity that was planted in a file is in its de-identified copy; what training needs is."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.intake.confidentiality import identifying_keywords
from client.intake.deidentification.deidentifier import Deidentifier, Method
from client.intake.deidentification.profile import ARRAYS, CLASSES, TEXTS, rules
from client.intake.dicom import matches
from client.intake.identity import Pseudonyms
from client.intake.image import FileRefusedError

DEIDENTIFIER = Deidentifier(Method(allow_burned_in=True), Pseudonyms(b"k" * 32))
SECRETS = (b"quillonby", b"zephyrine", b"mrn7788", b"19831207", b"1.2.276.0.888888")
PLANTS = {
    "PN": "Quillonby^Zephyrine", "CS": "QUILLONBY", "AE": "QUILLONBY_WS", "AS": "Quil", "DA": "19831207",
    "DT": "19831207141530.5", "UI": "1.2.276.0.888888", "IS": "19831207", "DS": "19831207",
    "SH": "Zephyrine", "LO": "for Zephyrine Quillonby", "UR": "https://quillonby.example/MRN7788", "UC": "x MRN7788 x",
    "ST": "born 1983-12-07: Quillonby", "LT": "MRN7788, seen with ZEPHYRINE", "UT": "Dr. Quillonby\r\nMRN7788",
    "OB": b"Quillonby.pdf ", "UN": b"Zephyrine ",
    "OW": b"Quillonby ", "OF": b"Quillonby   ", "OD": b"Quillonby       ",
}  # fmt: skip
KEPT_UIDS = ("DeviceUID", "ManufacturerDeviceClassUID")
"""UIDs of devices and no people: the option that keeps the device's identity keeps them."""
TEXT_TAGS = sorted(
    tag
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items()
    if vr in PLANTS and 0x0008 <= tag >> 16 < 0x7FE0 and keyword not in ARRAYS | CLASSES
    and not keyword.endswith("SOPClassUID") and keyword not in KEPT_UIDS
)  # fmt: skip
SEQUENCES = sorted(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ" and tag >> 16 >= 0x0008)


def copy_of(dataset: Dataset, folder: Path) -> tuple[bytes, Dataset]:
    """The copy of a data set, as bytes and as it is read from them."""
    path = folder / "planted.dcm"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.SourceApplicationEntityTitle = "QUILLONBY"
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.276.0.888888"
    dataset.file_meta.PrivateInformation = b"Zephyrine "
    dataset.preamble = b"Quillonby".ljust(128)
    dataset.save_as(path, enforce_file_format=True, overwrite=True)
    content = DEIDENTIFIER.made(path).content
    return content, pydicom.dcmread(BytesIO(content))


def someone() -> Dataset:
    """A CT file of a person."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.276.0.888888.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.276.0.888888.2", "1.2.276.0.888888.3"
    dataset.PatientName, dataset.PatientID = "Quillonby^Zephyrine", "MRN7788"
    dataset.PatientBirthDate, dataset.Modality = "19831207", "CT"
    return dataset


def plant(dataset: Dataset, tags: list[int]) -> None:
    for tag in tags:
        vr = DicomDictionary[tag][0]
        dataset.add(DataElement(tag, vr, PLANTS[vr], validation_mode=config.IGNORE))


@settings(max_examples=60, deadline=None)
@given(
    top=st.lists(st.sampled_from(TEXT_TAGS), max_size=40),
    nested=st.lists(
        st.tuples(st.sampled_from(SEQUENCES), st.lists(st.sampled_from(TEXT_TAGS), max_size=8)), max_size=6
    ),
    private=st.lists(st.tuples(st.sampled_from([0x0009, 0x0019, 0x2001, 0x7053]), st.integers(0, 255)), max_size=8),
)
def test_nothing_planted_anywhere_is_left(tmp_path_factory, top, nested, private):
    dataset = someone()
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        plant(dataset, [tag for tag in top if tag not in dataset])
        for tag, inside in nested:
            item, outer = Dataset(), Dataset()
            plant(item, inside)
            outer.add_new(0x00081140, "SQ", [item])
            dataset.add_new(tag, "SQ", [item, outer])
        for group, element in private:
            dataset.add_new(group << 16 | 0x0010, "LO", "Philips PET Private Group")
            dataset.add_new(group << 16 | 0x1000 | element, "LO", "Quillonby")
        dataset.add_new(0x60003000, "OW", b"Quillonby ")
        dataset.add_new(0x60004000, "LT", "Zephyrine")
        dataset.add_new(0x50004000, "LT", "Zephyrine")
        dataset.add_new(0xFFFCFFFC, "OB", b"Quillonby ")
        content, copy = copy_of(dataset, tmp_path_factory.mktemp("planted"))
    assert not [secret for secret in SECRETS if secret in content.lower()]
    assert identifying_keywords(copy) == ()


@settings(max_examples=30, deadline=None)
@given(
    tags=st.lists(st.sampled_from([tag for tag in TEXT_TAGS if DicomDictionary[tag][0] in ("LO", "LT", "PN", "UT")]))
)
def test_a_text_that_is_not_known_to_be_harmless_does_not_stay_whoever_it_names(tmp_path_factory, tags):
    dataset = someone()
    listed = {tag for tag, rule in rules().items() if rule.option}
    for tag in tags:
        if tag not in listed and DicomDictionary[tag][4] not in TEXTS:
            dataset.add(DataElement(tag, DicomDictionary[tag][0], "Nobody Foreknown"))
    assert b"Foreknown" not in copy_of(dataset, tmp_path_factory.mktemp("planted"))[0]


def test_what_training_needs_stays(tmp_path):
    dataset = someone()
    dataset.PatientSex, dataset.PatientAge, dataset.PatientWeight = "F", "041Y", 61.5
    dataset.Manufacturer, dataset.DeviceSerialNumber, dataset.StationName = "ACME", "SN-12", "CT1"
    dataset.PixelSpacing, dataset.ImagePositionPatient, dataset.KVP = [0.5, 0.5], [1, 2, 3], 120
    dataset.SeriesDescription, dataset.ConvolutionKernel = "AX Thorax for Dr. Quillonby 5mm", "B30f"
    dataset.DeviceUID = "1.2.276.0.777777"
    copy = copy_of(dataset, tmp_path)[1]
    assert copy.DeviceUID == "1.2.276.0.777777"
    assert (copy.PatientSex, copy.PatientAge, copy.PatientWeight) == ("F", "041Y", 61.5)
    assert (copy.Manufacturer, copy.DeviceSerialNumber, copy.StationName) == ("ACME", "SN-12", "CT1")
    assert (copy.PixelSpacing, copy.ImagePositionPatient, copy.KVP) == ([0.5, 0.5], [1, 2, 3], 120)
    assert (copy.SeriesDescription, copy.ConvolutionKernel) == ("AX Thorax 5mm", "B30f")


def test_the_copy_says_what_was_done_as_the_standard_wants(tmp_path):
    copy = copy_of(someone(), tmp_path)[1]
    assert copy.PatientIdentityRemoved == "YES"
    assert copy.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [item.CodeValue for item in copy.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113104", "113105", "113107", "113108", "113109", "113111"]
    assert all(item.CodingSchemeDesignator == "DCM" for item in copy.DeidentificationMethodCodeSequence)


def test_dates_of_a_patient_move_together_and_those_of_another_otherwise(tmp_path):
    moved = {}
    for patient, date, time in [
        ("A1", "20200301", "000500"),
        ("A1", "20200311", "234000"),
        ("B2", "20200301", "000500"),
    ]:
        dataset = someone()
        dataset.PatientID, dataset.StudyDate, dataset.StudyTime = patient, date, time
        dataset.AcquisitionDateTime = date + time
        copy = copy_of(dataset, tmp_path)[1]
        assert copy.AcquisitionDateTime == copy.StudyDate + copy.StudyTime
        moved[patient, date] = np.datetime64(f"{copy.StudyDate[:4]}-{copy.StudyDate[4:6]}-{copy.StudyDate[6:]}") + (
            np.timedelta64(int(copy.StudyTime[:2]) * 60 + int(copy.StudyTime[2:4]), "m")
        )
    first, second, other = moved.values()
    assert (second - first) / np.timedelta64(1, "m") == pytest.approx(10 * 1440 + 1415, abs=1)
    assert first != other
    assert first < np.datetime64("2020-03-01")


@pytest.mark.parametrize(
    ("keyword", "value", "left"),
    [("PatientAge", "097Y", "090Y"), ("StudyDate", "no date", ""), ("StudyTime", "Zephyrine", ""),
     ("Manufacturer", "Quillonby Ltd", ""), ("BodyPartExamined", "zephyrine", ""), ("PatientName", "Q^Z", "")],
)  # fmt: skip
def test_values_that_tell_too_much_or_are_broken_do_not_stay(tmp_path, keyword, value, left):
    dataset = someone()
    with config.disable_value_validation():
        setattr(dataset, keyword, value)
        assert copy_of(dataset, tmp_path)[1].get(keyword, "") == left


def test_safe_private_numbers_stay_and_their_creators_and_nothing_else_private(tmp_path):
    dataset = someone()
    block = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.00022")
    block.add_new(0x03, "ST", "Zephyrine")
    dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"Quillonby ")
    copy = copy_of(dataset, tmp_path)[1]
    private = [element for element in copy if element.tag.is_private]
    assert [element.value for element in private] == ["Philips PET Private Group", 0.00022]


def read_copies(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(BytesIO(DEIDENTIFIER.made(path).content)) for path in sorted(folder.rglob("*.dcm"))]


def references(dataset: Dataset) -> set[str]:
    found = set()
    for tag in dataset.keys():  # noqa: SIM118 - decoding every contour takes long
        vr = dataset.get_item(tag).VR or DicomDictionary.get(tag, ("UN",))[0]
        if vr == "SQ":
            found |= {uid for item in dataset[tag].value for uid in references(item)}
        elif vr == "UI" and dataset[tag].keyword in ("ReferencedSOPInstanceUID", "ReferencedFrameOfReferenceUID"):
            found.add(str(dataset[tag].value))
    return found


def test_a_structure_set_still_belongs_to_its_image_and_keeps_its_contours(shared_data):
    folder = shared_data / "radiotherapy_dicom"
    before, after = ([*map(pydicom.dcmread, sorted(folder.rglob("*.dcm")))], read_copies(folder))
    old, new = ({one.Modality: one for one in files} for files in (before, after))
    assert new["RTSTRUCT"].StudyInstanceUID == new["CT"].StudyInstanceUID != old["CT"].StudyInstanceUID
    for before_one, after_one in zip(before, after, strict=True):
        kept = {one.SOPInstanceUID for one in before} & references(before_one)
        assert len({one.SOPInstanceUID for one in after} & references(after_one)) == len(kept)
    contours = [
        [
            contour.get_item("ContourData").value  # as bytes
            for roi in one["RTSTRUCT"].ROIContourSequence
            for contour in roi.get("ContourSequence", [])
        ]
        for one in (old, new)
    ]
    assert contours[0] == contours[1]
    assert len({roi.ROIName for roi in new["RTSTRUCT"].StructureSetROISequence}) == len(
        {roi.ROIName for roi in old["RTSTRUCT"].StructureSetROISequence}
    )


def test_segmentations_and_reports_still_refer_to_their_images(shared_data):
    folder = shared_data / "derived_dicom"
    before, after = ([*map(pydicom.dcmread, sorted(folder.rglob("*.dcm")))], read_copies(folder))
    mapped = {old.SOPInstanceUID: new.SOPInstanceUID for old, new in zip(before, after, strict=True)}
    held = 0
    for old, new in zip(before, after, strict=True):
        expected = {mapped[uid] for uid in references(old) if uid in mapped}
        assert expected <= references(new)
        held += len(expected)
        pixels = old.get("PixelData", b"")
        assert (pixels, old.Modality) == (new.get("PixelData", b"")[: len(pixels)], new.Modality)
    assert held >= 10


def shipped_dicom() -> list[Path]:
    folder = Path(pydicom.data.__file__).parent
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and matches(path.read_bytes()[:1024])]


@pytest.mark.slow
def test_every_dicom_file_that_pydicom_ships_has_a_copy_that_dcmtk_reads_or_a_true_reason(tmp_path):
    copies, reasons = [], {}
    for number, path in enumerate(shipped_dicom()):
        try:
            made = DEIDENTIFIER.made(path)
        except FileRefusedError as error:
            reasons[path.name] = str(error)
            continue
        copies.append(tmp_path / f"{number}.dcm")
        copies[-1].write_bytes(made.content)
        assert identifying_keywords(pydicom.dcmread(copies[-1])) == ()
    assert len(copies) > 160
    assert all(reason.startswith(("no image: a DICOMDIR", "not a readable DICOM")) for reason in reasons.values())
    if shutil.which("dcmftest"):
        tested = subprocess.run(["dcmftest", *copies], capture_output=True, text=True)
        assert tested.returncode == 0, tested.stdout


def test_the_same_file_always_gives_the_same_copy_and_another_site_another(shared_data):
    path = next((shared_data / "brain_mri_dicom").rglob("*.dcm"))
    assert DEIDENTIFIER.made(path).content == DEIDENTIFIER.made(path).content
    elsewhere = Deidentifier(Method(allow_burned_in=True), Pseudonyms(b"z" * 32)).made(path)
    mine, theirs = (pydicom.dcmread(BytesIO(made.content)) for made in (DEIDENTIFIER.made(path), elsewhere))
    assert mine.PixelData == theirs.PixelData
    assert {mine.PatientID, mine.SOPInstanceUID, mine.StudyDate}.isdisjoint(
        {theirs.PatientID, theirs.SOPInstanceUID, theirs.StudyDate}
    )


def test_an_overlay_that_hides_in_unused_bits_of_the_pixels_is_cleared(write_dicom, tmp_path):
    stored = np.arange(24 * 20, dtype=np.uint16).reshape(24, 20)
    path = write_dicom(
        tmp_path / "a.dcm", pixels=stored | 0x8000, BitsStored=12, HighBit=11, SOPInstanceUID=generate_uid()
    )
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60000102, "US", 15)
    dataset.add_new(0x60000010, "US", 24)
    dataset.save_as(path)
    copy = pydicom.dcmread(BytesIO(DEIDENTIFIER.made(path).content))
    assert np.array_equal(np.frombuffer(copy.PixelData, dtype="<u2").reshape(24, 20), stored)
    assert not [tag for tag in copy.keys() if tag.group == 0x6000]  # noqa: SIM118
