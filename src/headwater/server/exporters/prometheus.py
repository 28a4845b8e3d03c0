"""The metrics of a process in the text format of Prometheus, read at each scrape.

Metrics that come from the database (`log`, `projection`, `sagas`, `invariant`) are the same from every process; all
others are the process's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import asyncpg
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from headwater.consumers.scheduler import ScheduleCounts
from headwater.consumers.standings import Standings, read_standings
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Verdict
from headwater.eventstore.snapshots import SnapshotCounts
from headwater.postgres.database import UNREACHABLE
from headwater.projections.verify_invariants import CheckedInvariant, checked_invariants
from headwater.sagas.operations import OPEN, SagaCount, counted, limits_of
from headwater.sagas.steps import SagaCounts
from headwater.server.exporters.process import process_metrics
from headwater.server.health import Trouble
from headwater.server.node import Node
from headwater.server.self_report import settle_ages
from headwater.supervisor import within
from headwater.telemetry import Distribution, Progress, Telemetry

CONTENT_TYPE = CONTENT_TYPE_LATEST

NO_ANSWER: tuple[type[BaseException], ...] = (*UNREACHABLE, asyncpg.QueryCanceledError)
"""The errors of a scrape when the database does not answer."""


@dataclass(frozen=True)
class _InDatabase:
    standings: Standings
    sagas: Sequence[SagaCount]
    invariants: Sequence[CheckedInvariant]


@dataclass(frozen=True)
class _Working:
    """The work of the consumers of a process, by the name of a unit or a saga. schedules: None if it fires none."""

    progress: Mapping[str, Progress]
    sagas: Mapping[str, SagaCounts]
    schedules: ScheduleCounts | None


@dataclass(frozen=True)
class _Deciding:
    appender: Appender
    snapshots: SnapshotCounts


@dataclass(frozen=True)
class _ServingClients:
    telemetry: Telemetry
    subscriptions: Mapping[str, int]
    sockets: int


@dataclass(frozen=True)
class Scrape:
    """Everything that one scrape shows.

    database: None when the database is away. troubles: what is wrong with the process. deciding: None in a process that
    decides no commands. serving: None in a process that does not serve.
    """

    database: _InDatabase | None
    troubles: Sequence[Trouble]
    working: _Working
    deciding: _Deciding | None
    serving: _ServingClients | None


async def text_of(node: Node, sockets: int | None) -> bytes:
    """Return the metrics of the process.

    When the database is away, `headwater_database_up` is 0 and the metrics that come from it are left out.
    sockets: the number of open websockets; None in a process that does not serve.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(await _scrape(node, sockets)))
    return generate_latest(registry)


async def _scrape(node: Node, sockets: int | None) -> Scrape:
    return Scrape(
        await _in_database(node),
        node.health.troubles,
        _working(node),
        _Deciding(node.appender, node.snapshots.counts) if node.decides else None,
        _ServingClients(node.telemetry, _subscriptions(node), sockets or 0) if node.serves else None,
    )


async def _in_database(node: Node) -> _InDatabase | None:
    """Return what the database knows; None when it does not answer."""
    pool = node.probe.pool

    async def ask() -> _InDatabase:
        standings = await read_standings(pool)
        sagas = await counted(pool, limits_of(node.app.domain))
        invariants = await checked_invariants(pool)
        await settle_ages(pool, node.telemetry)
        return _InDatabase(standings, sagas, invariants)

    try:
        return await within(node.probe_seconds, ask())
    except NO_ANSWER:
        return None  # `headwater_database_up` shows it, and the outage log reports it


def _working(node: Node) -> _Working:
    if not node.works:
        return _Working({}, {}, None)
    worker = node.worker
    sagas = {saga.name: worker.conductors[saga.category].counts for saga in node.app.domain.sagas}
    return _Working(worker.progress, sagas, None if worker.scheduler is None else worker.scheduler.counts)


def _subscriptions(node: Node) -> dict[str, int]:
    watchers = {feed.reader.view.name: feed.watchers for feed in node.serving.feeds.values()}
    return {**watchers, "events": node.telemetry.followers}


class _Collector(Collector):
    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    def collect(self) -> Iterable[Metric]:
        database, working, deciding = self._scrape.database, self._scrape.working, self._scrape.deciding
        yield _gauge("database_up", "1 if the database answered this scrape.", [([], database is not None)])
        if database is not None:
            yield from _database(database.standings)
            yield from _sagas(database.sagas)
            yield _invariants(database.invariants)
        yield from _health(self._scrape.troubles)
        yield from _projecting(working.progress)
        yield from _conducting(working.sagas)
        if deciding is not None:
            yield from _appending(deciding.appender)
            yield _outcomes("snapshots", "Snapshots of long streams, by outcome.", asdict(deciding.snapshots))
        schedules = {} if working.schedules is None else asdict(working.schedules)
        yield _outcomes("schedule_moments", "Due moments of schedules that this process handled.", schedules)
        if self._scrape.serving is not None:
            yield from _serving(self._scrape.serving)
        yield from process_metrics()

    def describe(self) -> Iterable[Metric]:
        return ()


def _database(standings: Standings) -> Iterator[Metric]:
    yield _gauge("log_position", "The position of the log's last event.", [([], standings.head)])
    labels = ["projection", "generation", "state"]
    for name, field, text in (
        ("position", "position", "The checkpoint: the position that the projection is complete to."),
        ("lag_events", "lag_events", "Events after the checkpoint."),
        ("lag_seconds", "lag_seconds", "Age of the oldest event after the checkpoint; 0 when there is none."),
        ("parked_keys", "parked_keys", "Parked keys, whose events wait as dead letters."),
    ):
        values = [([p.name, str(p.generation), p.state], getattr(p, field)) for p in standings.projections]
        yield _gauge(f"projection_{name}", text, values, labels)
    verified = [p for p in standings.projections if p.differences is not None]
    values = [([p.name, str(p.generation), p.state], float(p.differences or 0)) for p in verified]
    text = "Rows that the last headwater verify found different from the log; absent before the first."
    yield _gauge("projection_differences", text, values, labels)
    values = [([p.name, str(p.generation), p.state], float(p.failure is not None)) for p in standings.projections]
    text = "1 if the build of the generation failed, or the unit halts before an event: headwater status shows why."
    yield _gauge("projection_failed", text, values, labels)


def _invariants(checked: Sequence[CheckedInvariant]) -> Metric:
    text = "Keys whose events the last headwater verify found to contradict the invariant; absent before the first."
    values = [([each.name], float(each.violations)) for each in checked]
    return _gauge("invariant_violations", text, values, ["invariant"])


def _health(troubles: Sequence[Trouble]) -> Iterator[Metric]:
    ready = not any(each.unready for each in troubles)
    yield _gauge("ready", "1 if the process can answer, and write the log: /health/ready answers 200.", [([], ready)])
    since = [([each.name, str(each.unready).lower()], each.since.timestamp()) for each in troubles]
    text = "Since when the process has a trouble, in Unix time; unready: whether it makes the process not ready."
    yield _gauge("trouble_since_seconds", text, since, ["trouble", "unready"])


def _projecting(projections: Mapping[str, Progress]) -> Iterator[Metric]:
    labels = ["projection"]
    for name, field, text in (
        ("events", "events", "Events that this process folded and committed."),
        ("batches", "batches", "Batches that this process committed."),
        ("failures", "failures", "Failures of the app's functions on an event, in this process."),
        ("retries", "retries", "Retries of this process after a fold failed."),
        (
            "displaced",
            "displaced",
            "Batches of this process that were discarded: another had moved the checkpoint.",
        ),
    ):
        values = [([each], getattr(progress, field)) for each, progress in projections.items()]
        yield _counter(f"projection_{name}", text, values, labels)
    sizes = [([name], progress.sizes) for name, progress in projections.items()]
    yield _histogram("projection_batch_events", "Events in a batch that this process committed.", sizes, labels)
    delays = [([name], progress.delays) for name, progress in projections.items()]
    yield _histogram(
        "append_to_row_seconds", "Time from the recording of an event to the commit of its row.", delays, labels
    )


def _sagas(counts: Sequence[SagaCount]) -> Iterator[Metric]:
    values = [([each.saga, phase.value], float(getattr(each, phase.value))) for each in counts for phase in OPEN]
    yield _gauge("sagas", "Saga instances that are not over.", values, ["saga", "status"])
    stuck = [([each.saga], float(each.stuck)) for each in counts if each.stuck is not None]
    yield _gauge(
        "sagas_stuck", "Saga instances that are not over after the time that their saga declares.", stuck, ["saga"]
    )


def _conducting(saga_counts: Mapping[str, SagaCounts]) -> Iterator[Metric]:
    for name, text in (
        ("started", "Saga instances that this process began."),
        ("done", "Saga instances that this process completed."),
        ("steps", "Accepted steps of saga instances, without undos."),
        ("refusals", "Refused steps of saga instances."),
        ("timeouts", "Steps of saga instances that timed out or were withdrawn."),
        ("compensations", "Accepted undos of saga instances."),
        ("fired", "Timers of saga instances that were due."),
    ):
        values = [([saga], float(getattr(counts, name))) for saga, counts in saga_counts.items()]
        yield _counter(f"saga_{name}", text, values, ["saga"])


def _appending(appender: Appender) -> Iterator[Metric]:
    counts = appender.counts
    accepted = counts.verdicts[Verdict.ACCEPTED]
    verdicts = [([verdict.name.lower()], count) for verdict, count in counts.verdicts.items()]
    yield _counter("append_commands", "Commands of this process that the log accepted.", [([], accepted)])
    yield _counter("append_events", "Events that this process appended.", [([], counts.events)])
    yield _counter(
        "append_verdicts", "Verdicts on the commands that this process sent to the log.", verdicts, ["verdict"]
    )
    yield _histogram("append_batch_commands", "Commands in one append.", [([], counts.sizes)])
    yield _histogram("append_seconds", "Duration of one append, including its commit.", [([], counts.seconds)])
    yield _gauge("append_queue_commands", "Commands that wait for the next append.", [([], appender.waiting)])


def _outcomes(name: str, text: str, counts: Mapping[str, int]) -> Metric:
    return _counter(name, text, _labelled(counts), ["outcome"])


def _serving(serving: _ServingClients) -> Iterator[Metric]:
    telemetry = serving.telemetry
    operations = [([kind, outcome], taken) for (kind, outcome), taken in sorted(telemetry.operations.items())]
    yield _histogram(
        "graphql_operation_seconds",
        "Duration of GraphQL operations; of a subscription, until it is open.",
        operations,
        ["kind", "outcome"],
    )
    yield _gauge("sockets", "Open websockets.", [([], serving.sockets)])
    yield _gauge(
        "subscriptions", "Open subscriptions to a read model, or to events.", _labelled(serving.subscriptions), ["to"]
    )
    yield _counter(
        "sent_messages", "Changes that were handed to subscribers' sockets.", _labelled(telemetry.messages), ["to"]
    )
    yield _histogram(
        "append_to_sent_seconds",
        "Time from the recording of an event to the hand-over of its change to a subscriber's socket; at most 10000 "
        "changes every few seconds.",
        [([], telemetry.sent)],
    )


def _labelled(values: Mapping[str, int]) -> list[tuple[list[str], float]]:
    return [([name], value) for name, value in values.items()]


def _gauge(name: str, text: str, values: Iterable[tuple[list[str], float]], labels: list[str] | None = None) -> Metric:
    return _filled(GaugeMetricFamily(f"headwater_{name}", text, labels=labels or []), values)


def _counter(
    name: str, text: str, values: Iterable[tuple[list[str], float]], labels: list[str] | None = None
) -> Metric:
    return _filled(CounterMetricFamily(f"headwater_{name}", text, labels=labels or []), values)


def _filled(family: Any, values: Iterable[tuple[list[str], float]]) -> Metric:
    for labels, value in values:
        family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]  # a Metric


def _histogram(
    name: str, text: str, values: Iterable[tuple[list[str], Distribution]], labels: list[str] | None = None
) -> Metric:
    family = HistogramMetricFamily(f"headwater_{name}", text, labels=labels or [])
    for each, distribution in values:
        family.add_metric(each, _buckets(distribution), distribution.total)
    return family


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """Return cumulative counts, as Prometheus expects them."""
    bounds = [*(str(float(bound)) for bound in distribution.bounds), "+Inf"]
    return list(zip(bounds, accumulate(distribution.counts), strict=True))
