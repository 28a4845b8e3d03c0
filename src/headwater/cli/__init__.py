"""The command line: `headwater dev | serve | work | migrate | status | ...`.

Begin with `arguments`, which declares the commands. Each group of commands is one module (`processes`, `events`,
`sagas`, ...), imported when one of its commands runs. What they share: `application` loads the app, `connection`
reaches the database, `output` prints, `loop` runs the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from headwater import logs
from headwater.cli.arguments import SERVICES, parser, settings_of
from headwater.cli.commands import function_of
from headwater.cli.output import accept_any_text, complain, exit_code_of, flush_quietly
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
        run = function_of(chosen.command)
        return exit_code_of(lambda: run(chosen, settings))
    except KeyboardInterrupt:
        return INTERRUPTED
    except HeadwaterError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{type(error).__name__}: {error}")


def _log_failure(sentence: str) -> int:
    """Log the error that ends a service, so that every line of its log has one form. Returns exit code 1."""
    logger.critical("%s", sentence)
    return 1
