"""Federated statistics: asked, kept and shown; a shift that is there is told, one that is not is not made up."""

import json
from dataclasses import replace

import numpy as np
import pytest

from common.bins import HISTOGRAMS, LABEL, SENSITIVITY, histogram
from common.errors import RunError, UpdateError
from common.job import parse_job
from common.release import Accounting, Numbers, Statistics, numbers_of
from common.statistics import counts_only, statistics_job, statistics_of
from common.update import Answer
from server.execution import execute
from server.shifts import SiteStatistics, distance, shifts
from server.statistics_report import as_data, for_terminal, statistics_of_run, warnings, write_folder
from server.submission import submit_job
from simulations.grid import InProcessGrid

LABELS = ("normal", "pneumonia")
SITES = ("east", "north", "south")
JOB = statistics_job("count", SITES, "chest", LABELS, epsilon=1.0)


def counted(random, patients=1500, sick=0.3, maker=0, deviation=12.0):
    """A site's noised histograms: `sick` is the share with the second label, `maker` the bin of its scanner."""
    found = {}
    for name in (LABEL, *HISTOGRAMS):
        weights = np.zeros(len(histogram(name, LABELS).bins))
        weights[maker if name == "maker" else 0] = patients
        if name == LABEL:
            weights[:2] = random.multinomial(patients, [1 - sick, sick])
        found[name] = weights + random.normal(0, deviation, len(weights))
    return found


class CountingSite:
    """A site that answers statistics with what it is given."""

    def __init__(self, name, found, refuses="", deviation=12.0):
        self.name, self.found, self.refuses, self.deviation, self.asked = name, found, refuses, deviation, []

    def answer(self, request):
        self.asked.append(request.kind)
        plain = Answer(self.name, request.job.digest, request.number, "ok")
        if self.refuses:
            return replace(plain, status="refused", reason=self.refuses)
        if request.kind == "consent":
            return plain
        weights = {name: tuple(map(float, values)) for name, values in self.found.items()}
        told = Statistics("noised", self.deviation, **weights)
        return replace(plain, numbers=Numbers(accounting=Accounting(0.9, 1e-5, 3.6, 1.0), statistics=told))


def run(registry, sites):
    grid, node_ids = InProcessGrid.of_sites({site.name: site for site in sites})
    name = submit_job(registry, JOB)
    assert registry.claim() == name
    execute(registry, name, grid, lambda: node_ids)
    return registry.run_detail(name)


def test_statistics_are_asked_for_once_kept_and_shown(registry, tmp_path):
    random = np.random.default_rng(1)
    sites = [CountingSite(name, counted(random, sick=0.7 if name == "east" else 0.3)) for name in SITES]
    detail = run(registry, sites)
    assert (detail.summary.status, sites[0].asked) == ("completed", ["consent", "statistics"])
    found = statistics_of_run(detail)
    assert (found.told[0].site, {shift.kind for shift in found.told}) == ("east", {"label"})
    assert found.sites[0].histograms["label"].tolist() == pytest.approx(sites[0].found["label"].tolist())
    assert abs(found.sites[0].patients - 1500) < 4 * found.sites[0].patients_deviation
    page = write_folder(found, tmp_path / "out")
    assert "label shift at east" in page.read_text()
    assert json.loads((tmp_path / "out" / "statistics.json").read_text()) == json.loads(json.dumps(as_data(found)))
    assert for_terminal(found).renderables


def test_a_site_that_refuses_is_told_and_the_others_count(registry):
    random = np.random.default_rng(2)
    sites = [CountingSite(name, counted(random), refuses="not here" if name == "south" else "") for name in SITES]
    found = statistics_of_run(run(registry, sites))
    assert [site.site for site in found.sites] == ["east", "north"]
    assert any("south" in line and "not here" in line for line in warnings(found))


def test_a_run_that_every_site_refuses_has_failed(registry):
    detail = run(registry, [CountingSite(name, {}, refuses="no") for name in SITES])
    assert detail.summary.status == "failed"
    with pytest.raises(RunError, match="has no statistics"):
        statistics_of_run(detail)


def test_a_histogram_of_other_bins_or_without_the_noise_asked_for_is_not_taken(registry):
    random = np.random.default_rng(2)
    short = {name: values for name, values in counted(random).items() if name != LABEL} | {LABEL: [1.0, 2.0]}
    sites = [CountingSite("east", short), CountingSite("north", counted(random), deviation=0.0)]
    sites.append(CountingSite("south", counted(random)))
    found = statistics_of_run(run(registry, sites))
    assert [site.site for site in found.sites] == ["south"]
    assert "2 bins" in found.missing[0]
    with pytest.raises(UpdateError, match="histogram"):
        numbers_of({"stat.modality": [1.0]}, {"stat": "noised"})


@pytest.mark.parametrize("deviation", [0.0, 12.0, 60.0])
def test_sites_that_are_alike_are_not_told_apart_however_loud_the_noise(deviation):
    told = 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        made = [SiteStatistics(name, deviation, 1.0, counted(random, deviation=deviation)) for name in SITES]
        told += sum(shift.told for shift in shifts(made, LABELS))
    assert told <= 1


@pytest.mark.parametrize(("changed", "kind"), [({"sick": 0.5}, "label"), ({"maker": 1}, "scanner")])
def test_a_shift_is_told_with_an_interval_that_holds_the_true_distance(changed, kind):
    random = np.random.default_rng(5)
    deviation = 3.7 * SENSITIVITY  # what epsilon 1 at delta 1e-5 needs
    made = [SiteStatistics(name, deviation, 1.0, counted(random, deviation=deviation)) for name in ("north", "south")]
    made.append(SiteStatistics("east", deviation, 1.0, counted(random, deviation=deviation, **changed)))
    first = next(shift for shift in shifts(made, LABELS) if shift.site == "east")
    assert (first.told, first.kind) == (True, kind)
    true = distance(np.array([0.7, 0.3]), np.array([0.5, 0.5])) if kind == "label" else 1.0
    assert first.low - 0.03 <= true <= first.high + 0.03


def test_the_job_for_statistics_asks_the_training_jobs_sites_for_its_labels():
    job = parse_job(
        'name = "chest"\nsites = ["a", "b"]\n[task]\nlabels = ["x", "y"]\n[data]\ncollection = "c"\n'
        '[privacy]\nmechanism = "dp-sgd"\ndelta = 1e-6\n'
    )
    made = statistics_of(job, epsilon=0.5)
    assert counts_only(made)
    assert (made.sites, made.data.collection, made.task.labels) == (job.sites, "c", ("x", "y"))
    assert (made.privacy.epsilon, made.privacy.delta, made.privacy.secure_noise) == (0.5, 1e-6, True)
