"""The command line: `headwater dev | serve | work | migrate | schema | ...`; `arguments.py` lists its commands."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import asyncpg

from headwater.cli.arguments import parser, settings_of
from headwater.cli.output import complain
from headwater.errors import HeadwaterError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 1 with a sentence on standard error."""
    chosen = parser().parse_args(arguments)
    try:
        settings = settings_of(chosen)
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        # They narrate each start and each socket; what matters of it is said by the command.
        for name in ("alembic", "uvicorn"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return chosen.command(chosen, settings) or 0
    except HeadwaterError as error:
        return complain(str(error))
    except (OSError, asyncpg.PostgresError) as error:
        return complain(f"{type(error).__name__}: {error}")
