from __future__ import annotations

import nibabel
import numpy as np
import pytest

from client.intake import nifti, series
from client.intake.image import FileRefusedError


def write_series(folder, write_dicom, stored, *, step=3.0, order=None, **attributes):
    """Axial slices of one series, in files whose names are in no useful order."""
    order = list(order or range(len(stored)))
    paths = []
    for place, (index, plane) in enumerate(zip(order, stored[order], strict=True)):
        given = {
            "SeriesInstanceUID": "1.2.3", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0, 0, index * step], "InstanceNumber": 100 - index, **attributes,
        }  # fmt: skip
        paths.append(write_dicom(folder / f"{place}.dcm", pixels=plane, **given))
    return paths


@pytest.fixture
def ramp():
    """Eight slices, each brighter than the one below."""
    noise = np.random.default_rng(0).integers(0, 50, (8, 16, 12))
    return (np.arange(8)[:, None, None] * 100 + noise).astype(np.uint16)


def test_slices_are_sorted_by_position_along_the_normal(tmp_path, write_dicom, ramp):
    volume = series.volume(write_series(tmp_path, write_dicom, ramp, order=[3, 0, 7, 5, 1, 6, 2, 4]))
    assert volume.shape == (8, 16, 12, 1)
    assert (np.diff(volume.mean(axis=(1, 2, 3))) > 0).all()


def test_a_sagittal_series_is_sorted_along_its_own_normal(tmp_path, write_dicom, ramp):
    paths = []
    for index in [4, 2, 0, 6, 1, 3, 5, 7]:
        paths.append(write_dicom(
            tmp_path / f"{index}.dcm", pixels=ramp[index], ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            ImagePositionPatient=[-2.0 * index, 5, 9],
        ))  # fmt: skip
    assert (np.diff(series.volume(paths).mean(axis=(1, 2, 3))) > 0).all()


def test_without_positions_the_instance_number_orders(tmp_path, write_dicom, ramp):
    paths = write_series(tmp_path, write_dicom, ramp, ImageOrientationPatient=None, ImagePositionPatient=None)
    assert (np.diff(series.volume(paths).mean(axis=(1, 2, 3))) < 0).all()


def test_a_multi_frame_file_is_one_volume(tmp_path, write_dicom, ramp):
    volume = series.volume([write_dicom(tmp_path / "a.dcm", pixels=ramp)])
    assert volume.shape == (8, 16, 12, 1)
    assert (np.diff(volume.mean(axis=(1, 2, 3))) > 0).all()


def test_windows_that_differ_from_slice_to_slice_do_not_make_slices_incomparable(tmp_path, write_dicom, ramp):
    folder = tmp_path / "a"
    paths = []
    for index in range(8):
        own = {"WindowCenter": float(ramp[index].mean()), "WindowWidth": 60.0}
        own["ImagePositionPatient"] = [0, 0, index * 3.0]
        paths += write_series(folder / str(index), write_dicom, ramp[index : index + 1], **own)
    assert (np.diff(series.volume(paths).mean(axis=(1, 2, 3))) > 0.05).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("one position", "several images at one position"),
        ("gap", "a slice is missing"),
        ("direction", "different directions"),
        ("size", "differ in size"),
        ("single", "a single 2D image"),
        ("slide", "tiles"),
    ],
)
def test_a_series_that_is_no_volume_is_refused_with_the_reason(tmp_path, write_dicom, ramp, change, reason):
    paths = write_series(tmp_path, write_dicom, ramp, Modality="SM" if change == "slide" else "MR")
    if change == "one position":
        paths += write_series(tmp_path / "b", write_dicom, ramp)
    elif change == "gap":
        del paths[4]
    elif change == "direction":
        paths[0] = write_dicom(
            tmp_path / "b.dcm", pixels=ramp[0], ImageOrientationPatient=[1, 0, 0, 0, 0, 1],
            ImagePositionPatient=[0, 0, 0],
        )  # fmt: skip
    elif change == "size":
        paths[0] = write_dicom(
            tmp_path / "b.dcm", pixels=ramp[0, :8], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, 0],
        )  # fmt: skip
    elif change == "single":
        paths = paths[:1]
    with pytest.raises(FileRefusedError, match=reason):
        series.volume(paths)


def test_real_series_become_volumes(shared_data):
    folder = shared_data / "brain_mri_dicom"
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        paths = sorted((folder / name).glob("*.dcm"))
        volume = series.volume(paths)
        assert volume.shape[0] == len(paths)
        assert 0.02 < volume.mean() < 0.9


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA"])
def test_a_nifti_volume_comes_out_the_same_however_it_is_stored(tmp_path, axes):
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)  # slices, rows, columns in LPS
    lps = nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(lps.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    path = tmp_path / "a.nii.gz"
    nibabel.save(lps.as_reoriented(turn), path)
    volume = nifti.volume([path])[..., 0]
    assert volume.shape == (5, 6, 7)
    inner = (volume > 0) & (volume < 1)
    assert np.corrcoef(volume[inner], values[inner])[0, 1] > 0.999


def test_nifti_is_known_by_content_whatever_its_name(tmp_path):
    image = nibabel.Nifti2Image(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / "scan")
    assert nifti.matches((tmp_path / "scan").read_bytes()[:1024])
    assert nifti.inspect(tmp_path / "scan").frames == 6


def test_nifti_scaling_does_not_change_what_is_seen(tmp_path):
    values = np.random.default_rng(0).integers(0, 200, (6, 6, 6)).astype(np.int16)
    plain, scaled = nibabel.Nifti1Image(values, np.eye(4)), nibabel.Nifti1Image(values, np.eye(4))
    scaled.header.set_slope_inter(2.5, -100)
    nibabel.save(plain, tmp_path / "a.nii")
    nibabel.save(scaled, tmp_path / "b.nii")
    np.testing.assert_allclose(nifti.volume([tmp_path / "a.nii"]), nifti.volume([tmp_path / "b.nii"]), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "reason"), [((4, 4, 4, 3), "2 or 3 dimensions, this has 4"), ((4,), "2 or 3 dimensions, this has 1")]
)
def test_nifti_of_other_dimensions_is_refused(tmp_path, shape, reason):
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, dtype=np.float32), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(FileRefusedError, match=reason):
        nifti.inspect(tmp_path / "a.nii")


def test_a_nifti_that_is_cut_short_is_refused(tmp_path, shared_data):
    whole = next((shared_data / "hippocampus_mri" / "images").iterdir()).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileRefusedError, match="cut short"):
        nifti.inspect(tmp_path / "a.nii.gz")
