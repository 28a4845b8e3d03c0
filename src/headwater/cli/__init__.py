"""The command line: `headwater dev | serve | work | migrate | schema | ...`; `arguments.py` lists its commands."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import asyncpg

from headwater.cli.arguments import parser, settings_of
from headwater.cli.output import complain, into_the_pipe
from headwater.errors import HeadwaterError

INTERRUPTED = 130
"""The exit code of who is told to stop by Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0; 1 with a sentence on standard error; 130 after Ctrl-C."""
    try:
        chosen = parser().parse_args(arguments)
        settings = settings_of(chosen)
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        # They narrate each start and each socket; what matters of it is said by the command.
        for name in ("alembic", "uvicorn"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return into_the_pipe(lambda: chosen.command(chosen, settings))
    except KeyboardInterrupt:
        return INTERRUPTED
    except HeadwaterError as error:
        return complain(str(error))
    except (OSError, asyncpg.PostgresError) as error:
        return complain(f"{type(error).__name__}: {error}")
