from __future__ import annotations

import math
from pathlib import Path

import pytest

from common.errors import DataError
from simulations.slices import LABELS, labels_of, split_patients, volumes_in, write_slices
from simulations.study import POOLED, Arm, job_of
from simulations.utility import Cell, Result, results_in, run_missing
from simulations.utility_arms import FEDERATION, IMAGE, OPACUS, PATIENT
from simulations.utility_report import draw, fill, table
from tests.benchmarks.privacy_utility import EPSILONS, cells, goals, recipes


def result(cell: Cell, auc: float = 0.9) -> Result:
    return Result(cell.data, cell.arm, cell.epsilon, cell.seed, auc, auc - 0.01, auc + 0.01, cell.epsilon, 12.5)


def study(federated: float, opacus: float) -> list[Result]:
    auc = {FEDERATION: federated, OPACUS: opacus}
    return [result(cell, auc.get(cell.arm, 0.98) if cell.private else 0.99) for cell in cells(range(2))]


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path):
    wanted, ran = cells([0]), []

    def run(cell: Cell) -> Result:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(cell)
        return result(cell)

    with pytest.raises(KeyboardInterrupt):
        run_missing(wanted, tmp_path / "results.csv", run, print)
    again: list[Cell] = []
    results = run_missing(wanted, tmp_path / "results.csv", lambda cell: again.append(cell) or result(cell), print)
    assert ran + again == wanted
    assert results == results_in(tmp_path / "results.csv") == [result(cell) for cell in wanted]


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path):
    (tmp_path / "results.csv").write_text("PatientID,label\nP1,normal\n")
    with pytest.raises(DataError, match="name another folder"):
        run_missing(cells([0]), tmp_path / "results.csv", result, print)


def test_a_damaged_line_is_named(tmp_path: Path):
    run_missing(cells([0])[:1], tmp_path / "results.csv", result, print)
    with (tmp_path / "results.csv").open("a") as file:
        file.write("chest X-rays,federation,8.0,0,high,,,,\n")
    with pytest.raises(DataError, match="take the line out"):
        results_in(tmp_path / "results.csv")


def test_the_table_has_a_row_an_arm_and_a_column_an_epsilon():
    lines = table(study(0.97, 0.96)).splitlines()
    assert lines[0] == "| | | ε = 1 | ε = 3 | ε = 8 | no privacy |"
    assert lines[2] == "| chest X-rays | federation | 0.970 ± 0.000 | 0.970 ± 0.000 | 0.970 ± 0.000 | 0.990 ± 0.000 |"
    assert [line.split(" | ")[1] for line in lines[2:]] == [FEDERATION, POOLED, OPACUS, IMAGE, PATIENT]


def test_the_figure_is_the_same_for_the_same_results(tmp_path: Path):
    for name in ("a.svg", "b.svg"):
        draw(study(0.97, 0.96), tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "patient as unit" in text
    assert "no privacy" in text


def test_results_take_their_place_in_a_page(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# Cost\n<!-- results -->\nold\n<!-- end of results -->\nMore.\n")
    fill(page, "| new |")
    assert page.read_text() == "# Cost\n<!-- results -->\n| new |\n<!-- end of results -->\nMore.\n"
    page.write_text("# Cost\n")
    with pytest.raises(DataError, match="no place for the results"):
        fill(page, "| new |")


def test_a_missed_goal_of_privacy_is_said():
    assert all(goals(study(0.975, 0.97)).values())
    assert list(goals(study(0.96, 0.985)).values()) == [False, False, False, False]


def test_the_study_has_every_level_for_both_units_and_three_seeds():
    wanted = cells(range(3))
    assert len(wanted) == len(set(wanted)) == 3 * (4 + 4 + 3 + 4 + 3)
    assert {cell.epsilon for cell in wanted} == {*EPSILONS, math.inf}


@pytest.mark.parametrize(("data", "arm"), list(recipes()))
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_every_recipe_is_a_job_with_the_privacy_that_its_cell_names(data: str, arm: str, epsilon: float):
    job = job_of(Arm("x", ("a",), recipes()[data, arm].tables(Cell(data, arm, epsilon, 0))), 0)
    assert (job.privacy.epsilon, job.privacy.delta, job.privacy.mechanism) == (epsilon, 1e-5, "dp-sgd")
    assert job.privacy.unit == ("image" if arm == IMAGE else "patient")
    assert not job_of(Arm("x", ("a",), recipes()[data, arm].tables(Cell(data, arm, math.inf, 0))), 0).private


def test_slices_carry_the_label_of_their_place_in_the_volume(shared_data: Path, tmp_path: Path):
    volume = volumes_in(shared_data)[0]
    labels = labels_of(volume)
    crossed = [number for number, label in enumerate(labels) if label == LABELS[1]]
    assert crossed == list(range(crossed[0], crossed[-1] + 1))  # one piece of anatomy, in one run of slices
    lines = write_slices([volume], tmp_path).read_text().splitlines()
    assert lines[1 + crossed[0]] == f"{volume.patient}/{crossed[0]:02d}.png,{volume.patient},present"
    assert len(lines) == 1 + len(labels)


def test_no_patient_is_on_both_sides(shared_data: Path):
    volumes = volumes_in(shared_data)
    training, test = split_patients(volumes, 0.7, 0)
    assert (len(training), len(test)) == (140, 60)
    assert sorted(volume.patient for volume in (*training, *test)) == [volume.patient for volume in volumes]


def test_a_folder_without_volumes_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="--data"):
        volumes_in(tmp_path)
