"""The command line: `headwater dev | serve | work | migrate | status | ...`.

Begin with `arguments.py`, which lists the commands. Each group of commands is one module (`processes`, `events`,
`sagas`, ...) with an `add` function that declares them. What they share: `application` loads the app, `connection`
reaches the database, `output` prints, `loop` runs the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import asyncpg

from headwater.cli.arguments import parser, settings_of
from headwater.cli.output import accept_any_text, complain, exit_code_of, flush_quietly
from headwater.errors import HeadwaterError

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
    try:
        chosen = parser().parse_args(arguments)
        settings = settings_of(chosen)
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        # They log every start and every socket at INFO; the commands report what matters of it.
        for name in ("alembic", "uvicorn"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return exit_code_of(lambda: chosen.command(chosen, settings))
    except KeyboardInterrupt:
        return INTERRUPTED
    except HeadwaterError as error:
        return complain(str(error))
    except (OSError, asyncpg.PostgresError) as error:
        return complain(f"{type(error).__name__}: {error}")
