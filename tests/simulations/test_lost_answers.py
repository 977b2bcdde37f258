"""An answer that is lost on its way is as if the hospital had been away, for strategies that keep something there."""

from __future__ import annotations

import pytest
from small_federation import SITES, job, population, same

from common.update import Answer
from simulations import crew
from simulations.engine import simulate


def run_with(monkeypatch, strategy, trains):
    """One hospital's answers to rounds 2, 3 and 5 do not arrive; it has trained in them, or it has not."""

    def interference(job, site, faults, joins_at):
        def answer(request, honestly):
            if site != SITES[0] or request.kind != "train" or request.number not in (2, 3, 5):
                return honestly()
            if trains:
                honestly()
            return Answer(site, request.job.digest, request.number, "failed", "lost")

        return answer

    with monkeypatch.context() as patch:
        patch.setattr(crew, "interference", interference)
        return simulate(job(strategy, rounds=7), population())


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "feddyn"])
def test_a_hospital_that_trained_in_vain_changes_no_bit_of_the_model(monkeypatch, strategy):
    lost, away = run_with(monkeypatch, strategy, trains=True), run_with(monkeypatch, strategy, trains=False)
    assert same(lost.model, away.model)
    assert not same(lost.model, simulate(job(strategy, rounds=7), population()).model)
