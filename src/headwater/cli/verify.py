"""`headwater verify [NAME]`: compares stored rows with a fold of the log, and checks invariants."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headwater.app import App
from headwater.cli.application import load
from headwater.cli.connection import migrated_database
from headwater.cli.loop import complete
from headwater.cli.output import answer, complain
from headwater.cli.terminal import printable
from headwater.config import Settings
from headwater.domain.invariant import AnyInvariant
from headwater.domain.read_model import AnyView
from headwater.errors import SettingsError
from headwater.eventstore.log import Log
from headwater.projections.verify import NotVerifiable, Verifier
from headwater.projections.verify_invariants import forget_others, verify_invariants
from headwater.projections.verify_report import InvariantReport, VerifyReport


@dataclass(frozen=True)
class _Wanted:
    """The chosen checks. sample: rows of each read model; None for all. skipped: invariants that are not checked."""

    views: Sequence[AnyView]
    invariants: Sequence[AnyInvariant]
    sample: int | None
    skipped: Sequence[AnyInvariant] = ()


@dataclass(frozen=True)
class _Verified:
    """The reports, and the errors of the read models that cannot be verified."""

    reports: Sequence[VerifyReport | InvariantReport]
    left: Sequence[NotVerifiable]


def run(chosen: argparse.Namespace, settings: Settings) -> int:
    app = load(chosen.app)
    wanted = _wanted(app, chosen.name, None if chosen.all else chosen.sample)
    verified = complete(_verified(app, settings, wanted))
    code = answer(_lines(verified, wanted), int(any(each.found for each in verified.reports)))
    for each in verified.left:
        code = complain(str(each))
    return code


def _wanted(app: App, name: str | None, sample: int | None) -> _Wanted:
    domain = app.domain
    if name is None:
        checked = domain.invariants if sample is None else ()
        return _Wanted(domain.views, checked, sample, skipped=() if checked else domain.invariants)
    views = [each for each in domain.views if each.name == name]
    invariants = [each for each in domain.invariants if each.name == name]
    if not (views or invariants):
        names = ", ".join([view.name for view in domain.views] + [each.name for each in domain.invariants])
        raise SettingsError(f"the app has no read model or invariant {name!r}; it has {names}")
    return _Wanted(views, invariants, sample)


def _lines(verified: _Verified, wanted: _Wanted) -> Iterator[str]:
    for report in verified.reports:
        yield from map(printable, report.lines())
    for each in wanted.skipped:
        yield f"{each.name}: not checked, since it reads the whole log; use --all, or `headwater verify {each.name}`"


async def _verified(app: App, settings: Settings, wanted: _Wanted) -> _Verified:
    reports: list[VerifyReport | InvariantReport] = []
    left = []
    async with migrated_database(settings, pool_size=2) as database:
        log = Log(database.pool, app.domain.codec)
        for view in wanted.views:
            try:
                verifier = Verifier(log, view, stream_of=app.domain.stream_of(view))
                reports.append(await verifier.live(database, wanted.sample))
            except NotVerifiable as error:
                left.append(error)
        if wanted.invariants:
            reports += await verify_invariants(database, log, wanted.invariants)
        await forget_others(database.pool, [each.name for each in app.domain.invariants])
    return _Verified(reports, left)
