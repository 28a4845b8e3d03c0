"""The steps of a start are printed as they begin and end."""

from __future__ import annotations

import pytest

from headwater.cli.steps import Steps, reporting


def test_a_step_is_printed_when_it_begins_and_gets_its_seconds_when_the_next_begins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = Steps(clock=iter([1.0, 2.25, 3.0, 13.0]).__next__)
    steps.begin("starting PostgreSQL")
    assert capsys.readouterr().out == "  starting PostgreSQL .................. "
    steps.begin("migrating the database")
    steps.end()
    steps.end()
    assert capsys.readouterr().out == "1.2 s\n  migrating the database ............... 10.0 s\n"


def test_the_last_step_ends_its_line_also_when_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def start() -> None:
        with reporting() as steps:
            steps.begin("loading the app")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start()
    assert capsys.readouterr().out.endswith(" s\n")
