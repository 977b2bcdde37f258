"""A strategy does the same in a deployment (kits, catalogs, encoded messages, a registry) as in a simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_federation import same

from client.catalog import CATALOG_FILE, Catalog
from client.dataset import open_cases
from client.intake.importer import ImportOptions, import_folder
from client.site import CACHE_FOLDER, Site
from common.job import parse_job
from server.execution import execute
from server.modelfiles import read_model
from server.registry import Registry
from server.submission import submit_job
from simulations.engine import simulate
from simulations.federation import create_federation
from simulations.grid import InProcessGrid
from simulations.members import Hospital

pytestmark = pytest.mark.slow
SITES = ("north", "south", "west")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """Three sites with kits and imported images."""
    folder = tmp_path_factory.mktemp("federation")
    made = create_federation(folder / "kits", SITES, collection="squares", private=False)
    random = np.random.default_rng(0)
    for place, name in enumerate(SITES):
        rows = ["file,label"]
        for number in range(60 + 20 * place):
            pixels = random.integers(0, 120, (16, 16), dtype=np.uint8)
            pixels[4:12, 4:12] += 100 * (number % 2)
            Image.fromarray(pixels).save(made.data(name) / f"{number}.png")
            rows.append(f"{number}.png,{('dark', 'bright')[number % 2]}")
        (folder / f"{name}.csv").write_text("\n".join(rows))
        options = ImportOptions(seed=place)
        import_folder(made.site_kit(name), "squares", made.data(name), folder / f"{name}.csv", options=options)
    return made


def job(strategy, text="", rounds=3):
    return parse_job(
        f'name = "squares"\nsites = ["north", "south", "west"]\n[task]\nlabels = ["dark", "bright"]\n'
        f'[data]\ncollection = "squares"\nsize = [16, 16]\n[network]\nparameters.width = 8\n'
        f"[training]\nmomentum = 0\nbatch_size = 16\n"
        f'[aggregation]\nstrategy = "{strategy}"\nrounds = {rounds}\n{text}\n'
    )


def deployed(federation, wanted, folder, *, stop_after=None):
    """The last model of a run through real sites; with `stop_after` it is stopped in between, and resumed."""
    torch.set_num_threads(1)
    registry = Registry(f"sqlite:///{folder / 'registry.sqlite'}", folder / "models")
    name = submit_job(registry, wanted)
    registry.claim(name)
    if stop_after is not None:

        def enough():
            return sum(record.kind == "train" for record in registry.run_detail(name).rounds) >= stop_after

        grid, node_ids = InProcessGrid.of_sites({site: Site.open(federation.site_kit(site), "cpu") for site in SITES})
        assert execute(registry, name, grid, lambda: node_ids, shutting_down=enough) == "interrupted"
        registry.resume(name)
        registry.claim(name)
    grid, node_ids = InProcessGrid.of_sites({site: Site.open(federation.site_kit(site), "cpu") for site in SITES})
    assert execute(registry, name, grid, lambda: node_ids) == "completed"
    last = next(model for model in registry.run_detail(name).models if model.kind == "last")
    model = read_model(registry.folder / last.path, last.sha256)
    registry.close()
    return model


def population(federation, wanted):
    """The same cases, from the sites' own catalogs."""
    found = {}
    for site in SITES:
        kit = federation.site_kit(site)
        splits = ("train", "validation", "test")
        catalog = Catalog(kit / CATALOG_FILE)
        found[site] = Hospital(
            site, {split: open_cases(catalog, wanted.data, split, kit / CACHE_FOLDER) for split in splits}
        )
    return found


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        ("fedavg", ""),
        ("scaffold", ""),
        ("feddyn", ""),
        ("ditto", ""),
        ("fedrep", ""),
        ("qfedavg", ""),
        ("median", ""),
        ("fedbuff", "parameters.K = 2"),
    ],
)
def test_a_deployment_and_a_simulation_come_to_the_same_bits(federation, tmp_path, strategy, text):
    wanted = job(strategy, text)
    real = deployed(federation, wanted, tmp_path)
    simulated = simulate(wanted, population(federation, wanted)).model
    assert same({name: real[name] for name in simulated}, simulated)


@pytest.mark.parametrize("strategy", ["scaffold", "fedyogi", "fedbn"])
def test_a_run_that_was_stopped_goes_on_with_what_the_strategy_remembers(federation, tmp_path, strategy):
    (tmp_path / "whole").mkdir()
    (tmp_path / "halved").mkdir()
    whole = deployed(federation, job(strategy, rounds=4), tmp_path / "whole")
    halved = deployed(federation, job(strategy, rounds=4), tmp_path / "halved", stop_after=2)
    assert same({name: halved[name] for name in whole}, whole)


def test_what_a_strategy_keeps_at_a_site_is_for_its_owner_only(federation, tmp_path):
    deployed(federation, job("ditto"), tmp_path)
    kept = list((federation.site_kit("north") / "memory").rglob("*.safetensors"))
    assert kept
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
