"""A process's measures in the text format of Prometheus. Everything is read when it is asked for; nothing runs between.

What the database knows (`log`, `projection`, `sagas`) is the same from every process; the rest is the process's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

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
from headwater.sagas.conductor import SagaCounts
from headwater.sagas.operations import OPEN, SagaCount, counted, limits_of
from headwater.server.node import HEALTH_SECONDS, NO_ANSWER, Node
from headwater.server.self_report import settle_ages
from headwater.supervisor import within
from headwater.telemetry import Distribution, Progress, Telemetry

CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True)
class Snapshot:
    """All that is shown, of one moment. standings, sagas: None when the database is away. appender, snapshots: None in
    a process that decides no commands. schedules: None in one that fires none. subscriptions, sockets: None in one that
    does not serve."""

    standings: Standings | None
    sagas: Sequence[SagaCount] | None
    projections: Mapping[str, Progress]
    tallies: Mapping[str, SagaCounts]
    telemetry: Telemetry
    appender: Appender | None
    snapshots: SnapshotCounts | None
    schedules: ScheduleCounts | None
    subscriptions: Mapping[str, int] | None
    sockets: int | None


async def text_of(node: Node, sockets: int | None) -> bytes:
    """The process's metrics. sockets: those open now; None in a process that serves none. A database that is away is
    said so (`headwater_database_up 0`), and what only it knows is left out."""
    registry = CollectorRegistry()
    registry.register(_Collector(await _snapshot(node, sockets)))
    return generate_latest(registry)


async def _snapshot(node: Node, sockets: int | None) -> Snapshot:
    serving = node.serving if node.serves else None
    scheduler = node.worker.scheduler if node.works else None
    standings, sagas = await _known(node)
    return Snapshot(
        standings,
        sagas,
        node.worker.progress if node.works else {},
        _tallies(node) if node.works else {},
        node.telemetry,
        node.appender if node.decides else None,
        node.snapshots.counts if node.decides else None,
        None if scheduler is None else scheduler.counts,
        None if serving is None else _subscriptions(node),
        sockets,
    )


def _tallies(node: Node) -> dict[str, SagaCounts]:
    return {saga.name: node.worker.conductors[saga.category].counts for saga in node.app.domain.sagas}


async def _known(node: Node) -> tuple[Standings, Sequence[SagaCount]] | tuple[None, None]:
    """What the database knows."""
    pool = node.probe.pool

    async def ask() -> tuple[Standings, Sequence[SagaCount]]:
        standings = await read_standings(pool)
        sagas = await counted(pool, limits_of(node.app.domain))
        await settle_ages(pool, node.telemetry)
        return standings, sagas

    try:
        return await within(HEALTH_SECONDS, ask())
    except NO_ANSWER:
        return None, None  # shown as a metric of its own; the supervisor's tasks have logged it


def _subscriptions(node: Node) -> dict[str, int]:
    watchers = {feed.reader.view.name: feed.watchers for feed in node.serving.feeds.values()}
    return {**watchers, "events": node.telemetry.followers}


class _Collector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        shown = self._snapshot
        yield _gauge("database_up", "Whether the database answered this scrape.", [([], shown.standings is not None)])
        if shown.standings is not None:
            yield from _database(shown.standings)
        if shown.sagas is not None:
            yield from _sagas(shown.sagas)
        yield from _projecting(shown.projections)
        yield from _conducting(shown.tallies)
        if shown.appender is not None:
            yield from _appending(shown.appender)
        if shown.snapshots is not None:
            yield _outcomes("snapshots", "What became of snapshots of long streams.", asdict(shown.snapshots))
        schedules = {} if shown.schedules is None else asdict(shown.schedules)
        yield _outcomes("schedule_moments", "Due moments of schedules that this process has dealt with.", schedules)
        if shown.subscriptions is not None:
            yield from _serving(shown.telemetry, shown.subscriptions, shown.sockets or 0)

    def describe(self) -> Iterable[Metric]:
        return ()


def _database(standings: Standings) -> Iterator[Metric]:
    yield _gauge("log_position", "The position of the log's last event.", [([], standings.head)])
    labels = ["projection", "generation", "state"]
    for name, field, text in (
        ("position", "position", "Up to which position of the log it is complete."),
        ("lag_events", "lag_events", "Events after its position."),
        ("lag_seconds", "lag_seconds", "Age of the oldest event after its position; 0 when there is none."),
        ("parked_keys", "parked_keys", "Keys whose events wait as dead letters."),
    ):
        values = [([p.name, str(p.generation), p.state], getattr(p, field)) for p in standings.projections]
        yield _gauge(f"projection_{name}", text, values, labels)
    verified = [p for p in standings.projections if p.differences is not None]
    values = [([p.name, str(p.generation), p.state], float(p.differences or 0)) for p in verified]
    text = "Rows that differ from the log, as the last headwater verify found; absent before the first."
    yield _gauge("projection_differences", text, values, labels)
    values = [([p.name, str(p.generation), p.state], float(p.failure is not None)) for p in standings.projections]
    text = "1 when the generation cannot be built: headwater status says why."
    yield _gauge("projection_failed", text, values, labels)


def _projecting(projections: Mapping[str, Progress]) -> Iterator[Metric]:
    labels = ["projection"]
    for name, field, text in (
        ("events", "events", "Events that this process has folded and committed."),
        ("batches", "batches", "Batches that this process has committed."),
        ("retries", "retries", "Attempts of this process after a fold had failed."),
        ("displaced", "displaced", "Batches of this process that were void, since another had moved the checkpoint."),
    ):
        values = [([each], getattr(progress, field)) for each, progress in projections.items()]
        yield _counter(f"projection_{name}", text, values, labels)
    sizes = [([name], progress.sizes) for name, progress in projections.items()]
    yield _histogram("projection_batch_events", "Events in a batch that this process has committed.", sizes, labels)
    delays = [([name], progress.delays) for name, progress in projections.items()]
    yield _histogram(
        "append_to_row_seconds", "From the recording of an event to the commit of its row.", delays, labels
    )


def _sagas(counts: Sequence[SagaCount]) -> Iterator[Metric]:
    values = [([each.saga, phase.value], float(getattr(each, phase.value))) for each in counts for phase in OPEN]
    yield _gauge("sagas", "Instances that are not over.", values, ["saga", "status"])
    stuck = [([each.saga], float(each.stuck)) for each in counts if each.stuck is not None]
    yield _gauge("sagas_stuck", "Instances that take longer than their saga declares.", stuck, ["saga"])


def _conducting(tallies: Mapping[str, SagaCounts]) -> Iterator[Metric]:
    for name, text in (
        ("started", "Instances that this process has begun."),
        ("done", "Instances that this process has brought to their end."),
        ("steps", "Commands of instances that were accepted; undos are not among them."),
        ("refusals", "Commands of instances that were refused."),
        ("timeouts", "Commands of instances that were not accepted in time, or given up before."),
        ("compensations", "Undos of instances that were accepted."),
        ("fired", "Messages of instances that fell due."),
    ):
        values = [([saga], float(getattr(tally, name))) for saga, tally in tallies.items()]
        yield _counter(f"saga_{name}", text, values, ["saga"])


def _appending(appender: Appender) -> Iterator[Metric]:
    tally = appender.counts
    accepted = tally.verdicts[Verdict.ACCEPTED]
    verdicts = [([verdict.name.lower()], count) for verdict, count in tally.verdicts.items()]
    yield _counter("append_commands", "Commands that this process has had accepted by the log.", [([], accepted)])
    yield _counter("append_events", "Events that this process has appended.", [([], tally.events)])
    yield _counter(
        "append_verdicts", "What became of the commands that this process sent to the log.", verdicts, ["verdict"]
    )
    yield _histogram("append_batch_commands", "Commands in one append.", [([], tally.sizes)])
    yield _histogram("append_seconds", "Duration of one append, with its commit.", [([], tally.seconds)])
    yield _gauge("append_queue_commands", "Commands that wait for the next append.", [([], appender.waiting)])


def _outcomes(name: str, text: str, tally: Mapping[str, int]) -> Metric:
    return _counter(name, text, _labelled(tally), ["outcome"])


def _serving(telemetry: Telemetry, subscriptions: Mapping[str, int], sockets: int) -> Iterator[Metric]:
    operations = [([kind, outcome], taken) for (kind, outcome), taken in sorted(telemetry.operations.items())]
    yield _histogram(
        "graphql_operation_seconds",
        "Duration of GraphQL operations; of a subscription, until it is open.",
        operations,
        ["kind", "outcome"],
    )
    yield _gauge("sockets", "Open WebSockets.", [([], sockets)])
    yield _gauge("subscriptions", "Open subscriptions to a read model, or to events.", _labelled(subscriptions), ["to"])
    yield _counter("sent_messages", "Changes that subscribers have taken.", _labelled(telemetry.messages), ["to"])
    yield _histogram(
        "append_to_sent_seconds",
        "From the recording of an event to the moment when a subscriber had taken its change; of 10000 changes every "
        "few seconds, at most.",
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
    """Cumulative, as Prometheus has them."""
    bounds = [*(str(float(bound)) for bound in distribution.bounds), "+Inf"]
    return list(zip(bounds, accumulate(distribution.counts), strict=True))
