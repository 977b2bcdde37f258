"""A run's model, fetched by whoever has the coordinator's kit."""

from __future__ import annotations

from pathlib import Path

import pytest
from playground import PlaygroundGrid, job_of, model_of

from common.errors import UpdateError, UsageError
from common.model_file import read_saved
from common.wiring import kept_model
from server.execution import execute
from server.registry import open_registry


@pytest.fixture
def kit(tmp_path) -> Path:
    fields = {"role": "coordinator", "name": "coordinator", "federation": "f", "federation_id": "0" * 64}
    fields["address"] = "127.0.0.1:1"
    (tmp_path / "kit.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in fields.items()))
    return tmp_path


def run(kit, federation):
    from common.kit import read_kit

    for site in federation.values():
        site.auc = lambda request: {2: 0.9}.get(request.number, 0.5)
    registry = open_registry(read_kit(kit, "coordinator"))
    name = registry.submit(job_of(), model_of())
    assert registry.claim() == name
    grid = PlaygroundGrid(federation)
    execute(registry, name, grid, lambda: grid.node_ids)
    registry.close()
    return name


def test_a_runs_best_and_last_models_say_what_they_are_wherever_they_go(kit, federation):
    name = run(kit, federation)
    for which, number in (("best", 1), ("last", 3)):
        model = read_saved(kept_model(name[:12], kit, which))
        assert (model.provenance.run, model.provenance.round) == (name, number)
        assert model.job == job_of()


def test_what_a_run_does_not_have_is_told(kit, federation):
    from common.kit import read_kit

    with pytest.raises(UsageError, match="there is no run"):
        kept_model("nosuch", kit, "best")
    name = open_registry(read_kit(kit, "coordinator")).submit(job_of(), model_of())
    with pytest.raises(UsageError, match="no trained model yet"):
        kept_model(name, kit, "best")


def test_a_models_file_that_was_changed_is_not_used(kit, federation):
    path = kept_model(run(kit, federation), kit, "last")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UpdateError, match="not the one that the registry kept"):
        kept_model(path.parent.name, kit, "last")
