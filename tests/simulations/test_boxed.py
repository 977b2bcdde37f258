"""Public sets with boxes are the sites' own boxes: those that the set's authors drew."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UsageError
from common.job import DataSection
from simulations.boxed import blood_cells, nuclei_boxes
from simulations.scenario import SourceSection
from simulations.sources import Wanted


def wanted(kind, path, labels, size):
    section, data = SourceSection(kind=kind, path=path), DataSection(collection="c", size=size, channels=3)
    return Wanted(section, data, labels, Path(), Path(), 0)


@pytest.fixture
def few(tmp_path, shared_data):
    """The first few smears of the set, with their boxes."""
    for folder, ending in (("images", "jpg"), ("boxes", "xml")):
        (tmp_path / "few" / folder).mkdir(parents=True)
        for path in sorted((shared_data / "blood_cells" / folder).glob(f"*.{ending}"))[:3]:
            (tmp_path / "few" / folder / path.name).symlink_to(path)
    return tmp_path / "few"


def test_boxes_of_blood_cells_lie_where_their_files_say(few):
    cases = blood_cells(wanted("blood-cells", str(few), ("RBC", "WBC"), (120, 160))).cases
    # The first smear's white cell: columns 260 to 491 and rows 177 to 376 of 640 x 480, a quarter of it here.
    first = cases.truth[0]
    assert np.allclose(first[first[:, 0] == 1], [[1, 176 / 4, 259 / 4, 376 / 4, 491 / 4]])
    assert cases.images.shape == (3, 3, 120, 160)


def test_each_nucleus_has_the_box_of_its_own_outline(tmp_path, shared_data):
    rows = (shared_data / "nuclei" / "index.csv").read_text().splitlines()[:3]
    (tmp_path / "index.csv").write_text("\n".join(rows))
    for folder in ("images", "labels"):
        (tmp_path / folder).symlink_to(shared_data / "nuclei" / folder)
    found = nuclei_boxes(wanted("nuclei-boxes", str(tmp_path), ("nucleus",), (128, 128)))
    assert found.columns["stain"] == ("fluorescence", "fluorescence")
    with Image.open(tmp_path / "labels" / f"{rows[1].split(',')[0]}.png") as picture:
        outlines = np.asarray(picture)[64:192, 64:192]
    boxes = found.cases.truth[0]
    assert int((boxes[:, 0] == 0).sum()) == len(np.unique(outlines)) - 1
    for _, top, left, bottom, right in boxes[boxes[:, 0] == 0].astype(int):
        assert outlines[top:bottom, left:right].any(axis=1).all()


def test_a_label_that_the_set_does_not_have_is_named():
    with pytest.raises(UsageError, match="nucleus"):
        nuclei_boxes(wanted("nuclei-boxes", "nuclei", ("cell",), (64, 64)))
