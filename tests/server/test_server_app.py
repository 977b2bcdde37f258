"""The ServerApp: nodes are asked for their sites' names, then the same rounds run."""

from __future__ import annotations

import pytest
from playground import NamelessGrid, job_of

from common.errors import JobError, RunError
from server import app

TEXT = 'name = "chest"\nsites = ["north", "south"]\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "c"\n'


def test_nodes_are_known_by_the_names_they_say(federation):
    grid = NamelessGrid(federation)
    grid.claims = {"north": "south", "south": "north", "west": "elsewhere"}
    assert app.ask_names(grid, ("north", "south")) == {"north": grid.node_ids["south"], "south": grid.node_ids["north"]}


def test_two_nodes_of_one_name_are_refused(federation):
    grid = NamelessGrid(federation)
    grid.claims = dict.fromkeys(federation, "north")
    with pytest.raises(RunError, match='two nodes say that they are site "north"'):
        app.ask_names(grid, ("north", "south"))


def test_a_job_comes_as_a_file_or_as_its_own_text(tmp_path):
    (tmp_path / "job.toml").write_text(TEXT)
    assert app.job_of(str(tmp_path / "job.toml")) == app.job_of(TEXT)
    assert app.job_of(TEXT).digest != job_of().digest
    with pytest.raises(JobError, match="can't be read"):
        app.job_of("none.toml")
