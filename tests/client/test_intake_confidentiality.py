from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from client.intake.confidentiality import ACTIONS, burned_in_annotation, identifying_keywords


def header(**attributes) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def test_every_listed_keyword_is_one_of_the_data_dictionary():
    assert None not in ACTIONS


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Smith^John"), ("PatientBirthDate", "19611224"), ("PatientAddress", "1 Main Street"),
        ("PatientTelephoneNumbers", "555 0100"), ("PatientName", "J^A"), ("PatientName", "Patient^Smith"),
        ("OtherPatientIDs", "123-45-6789"), ("PatientMotherBirthName", "Roe"),
        ("OtherPatientNames", ["Doe^Jane", "Roe^Jane"]), ("ReferringPhysicianName", "Watson^J"),
        ("OperatorsName", "Hudson"), ("InstitutionName", "St Bartholomew"), ("PatientComments", "son of the mayor"),
        ("PatientTelecomInformation", "john@example.org"), ("MilitaryRank", "Captain"),
    ],
)  # fmt: skip
def test_what_names_or_locates_a_person_is_flagged(keyword, value):
    assert identifying_keywords(header(**{keyword: value})) == (keyword,)


@pytest.mark.parametrize(
    "name", ["", "^^^^", "Anonymous", "ANONYMIZED^PATIENT", "xxx", "Anonymous 17", "unknown", "----", "PHANTOM"]
)
def test_empty_and_dummy_names_pass(name):
    assert identifying_keywords(header(PatientName=name)) == ()


def test_the_study_code_in_place_of_the_name_passes():
    assert identifying_keywords(header(PatientName="CQ500-CT-310", PatientID="CQ500-CT-310")) == ()


def test_ids_dates_uids_and_characteristics_alone_are_no_flag():
    dataset = header(
        PatientID="00123", StudyDate="20240102", AccessionNumber="4711", StudyInstanceUID="1.2.3", PatientAge="061Y",
        PatientSex="F", PatientWeight=70, StudyDescription="Chest PA", StationName="CT1",
    )  # fmt: skip
    assert identifying_keywords(dataset) == ()


def test_dummies_of_a_file_that_says_identity_was_removed_pass():
    dataset = header(PatientIdentityRemoved="YES", PatientName="Doe^Archibald", PatientBirthDate="19700101")
    assert identifying_keywords(dataset) == ()


def test_what_must_be_removed_is_flagged_even_when_the_file_says_identity_was_removed():
    dataset = header(PatientIdentityRemoved="YES", PatientName="Code 1", PatientAddress="1 Main Street")
    assert identifying_keywords(dataset) == ("PatientAddress",)


def test_an_institution_kept_by_its_option_passes():
    code = header(CodeValue="113112", CodingSchemeDesignator="DCM")
    dataset = header(PatientIdentityRemoved="YES", InstitutionAddress="1 Hospital Road")
    assert identifying_keywords(dataset) == ("InstitutionAddress",)
    dataset.DeidentificationMethodCodeSequence = Sequence([code])
    assert identifying_keywords(dataset) == ()


def test_a_name_deep_in_a_sequence_is_found():
    inner = header(RequestingPhysician="Watson^John")
    dataset = header(RequestAttributesSequence=Sequence([header(ReferencedStudySequence=Sequence([inner]))]))
    assert identifying_keywords(dataset) == ("RequestingPhysician",)


def test_a_private_attribute_with_a_persons_name_is_found():
    dataset = Dataset()
    dataset.add_new(0x00090010, "LO", "SOME VENDOR")
    dataset.add_new(0x00091001, "PN", "Smith^John")
    assert identifying_keywords(dataset) == ("a private attribute with a person's name",)


@pytest.mark.parametrize(("value", "meaning"), [("YES", True), ("NO", False), ("", None)])
def test_burned_in_annotation_is_told_as_the_file_tells_it(value, meaning):
    assert burned_in_annotation(header(BurnedInAnnotation=value)) is meaning
    assert burned_in_annotation(Dataset()) is None
