"""The command line: `headwater dev | serve | work | migrate | status | ...`.

Begin with `arguments.py`, which lists the commands. Each group of commands is one module (`processes`, `events`,
`sagas`, ...) with an `add` function that declares them. What they share: `application` loads the app, `connection`
reaches the database, `output` prints, `loop` runs the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import asyncpg

from headwater import logs
from headwater.cli.arguments import parser, settings_of
from headwater.cli.output import accept_any_text, complain, exit_code_of, flush_quietly
from headwater.cli.processes import SERVICES
from headwater.errors import HeadwaterError

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in shells: 128 plus the number of SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0; 1 after an error, printed on standard error; 130 after Ctrl-C."""
    accept_any_text()
    try:
        return _run(arguments)
    finally:
        flush_quietly()


def _run(arguments: Sequence[str] | None) -> int:
    fail = complain
    try:
        chosen = parser().parse_args(arguments)
        settings = settings_of(chosen)
        logs.configure(settings.log_format, settings.log_level)
        if logs.is_json() and chosen.command in SERVICES:
            fail = _log_failure
        return exit_code_of(lambda: chosen.command(chosen, settings))
    except KeyboardInterrupt:
        return INTERRUPTED
    except HeadwaterError as error:
        return fail(str(error))
    except (OSError, asyncpg.PostgresError) as error:
        return fail(f"{type(error).__name__}: {error}")


def _log_failure(sentence: str) -> int:
    """Log the error that ends a service, so that every line of its log has one form. Returns exit code 1."""
    logger.critical("%s", sentence)
    return 1
