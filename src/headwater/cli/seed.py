"""`headwater seed MODULE`: executes the commands of a seed."""

from __future__ import annotations

import argparse

from headwater.cli.app_import import imported
from headwater.cli.application import load
from headwater.cli.loop import complete
from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.server.seeding import run_seed


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    app = load(chosen.app)
    module = imported(chosen.module, f"seed {chosen.module!r}")
    function = getattr(module, "seed", None)
    if not callable(function):
        raise SettingsError(
            f"seed {chosen.module!r}: the module has no function `seed`, a generator of (command, actor)"
        )
    number = complete(run_seed(app, settings, chosen.module, function))
    print(f"All {number} commands of {chosen.module} are in the log.")
