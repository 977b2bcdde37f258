"""Prometheus' numbers at `/metrics`: the sites, the runs by status, and each run that is under way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, get_args

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from server.dashboard.security import Needs
from server.follow import UNDER_WAY
from server.readmodel import ReadModel
from server.records import RunStatus
from server.roles import Person
from server.views import Federation, SiteState

MOST_UNDER_WAY = 20


class FederationCollector(Collector):
    """Makes the numbers anew at each scrape, from the read model."""

    def __init__(self, read: ReadModel) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        federation = self._read.federation()
        running = float(federation.coordinator_running)
        yield _gauge("coordinator_running", "1 while a coordinator runs", [((), running)])
        yield from _sites(federation)
        by_status = [
            ((status,), float(self._read.runs(status=status, limit=1).total)) for status in get_args(RunStatus)
        ]
        yield _gauge("runs", "Runs in the registry by status", by_status, "status")
        yield from self._under_way()

    def _under_way(self) -> Iterator[Metric]:
        lines = [line for status in UNDER_WAY for line in self._read.runs(status=status, limit=MOST_UNDER_WAY).items]
        views = [self._read.run(line.name) for line in lines]
        names = [(line.name,) for line in lines]
        done = [(name, float(line.done)) for name, line in zip(names, lines, strict=True)]
        planned = [(name, float(line.rounds)) for name, line in zip(names, lines, strict=True)]
        sent = [(name, float(view.sent)) for name, view in zip(names, views, strict=True)]
        received = [(name, float(view.received)) for name, view in zip(names, views, strict=True)]
        spent = [((view.line.name, one.site), one.epsilon) for view in views for one in view.spends]
        budget = [((view.line.name, one.site), one.budget) for view in views for one in view.spends]
        yield _gauge("run_rounds_done", "Committed rounds of a run under way", done, "run")
        yield _gauge("run_rounds_planned", "Rounds that a run under way is to have", planned, "run")
        yield _gauge("run_sent_bytes", "Bytes of tensors sent to sites in a run under way", sent, "run")
        yield _gauge("run_received_bytes", "Bytes of tensors received from sites in a run under way", received, "run")
        yield _gauge("run_epsilon", "Epsilon that a run under way has spent at a site", spent, "run", "site")
        yield _gauge("run_epsilon_budget", "Epsilon that a run under way may spend at a site", budget, "run", "site")


def metrics_router(read: ReadModel) -> APIRouter:
    """Return the endpoint that Prometheus asks, with a token of the scope "metrics"."""
    router, registry = APIRouter(tags=["metrics"]), CollectorRegistry()
    collector = FederationCollector(read)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(_: Annotated[Person, Depends(Needs("metrics"))]) -> Response:
        """Return the numbers in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    registry.register(collector)
    return router


def _sites(federation: Federation) -> Iterator[Metric]:
    states = [
        ((site.name, state), float(site.state == state)) for site in federation.sites for state in get_args(SiteState)
    ]
    seen = [((site.name,), site.last_seen) for site in federation.sites if site.last_seen is not None]
    ends = [((site.name,), site.certificate_ends) for site in federation.sites if site.certificate_ends is not None]
    yield _gauge("site_state", "1 for the state that a site is in", states, "site", "state")
    yield _gauge("site_last_seen_timestamp_seconds", "When a site was last seen", seen, "site")
    yield _gauge("site_certificate_end_timestamp_seconds", "When a site's certificate ends", ends, "site")


def _gauge(name: str, text: str, values: Sequence[tuple[tuple[str, ...], float]], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"wardround_{name}", text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
