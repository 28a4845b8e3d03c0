"""Runs `headwater ...` to its end as an operator does, each command in a process of its own.

The processes are forked from one that has loaded the modules, since loading takes longer than most commands. The start
of a new interpreter is tested in `tests/acceptance`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import BinaryIO

from headwater.cli import main

ROOT = Path(__file__).parents[2]
CLI = ROOT / "src" / "headwater" / "cli"
PATIENCE = 60
PROGRAM_PATIENCE = 100

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["bank.main", *(f"headwater.cli.{file.stem}" for file in CLI.glob("[a-z]*.py"))])


def clean_environ() -> dict[str, str]:
    """Return this process's environment without settings of Headwater."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HEADWATER_", "DATABASE_URL"))}


async def run_command(
    *arguments: str, cwd: Path = ROOT, environ: Mapping[str, str] | None = None, **more: str
) -> tuple[int, str, str]:
    """Run a command. Returns its exit code, standard output and standard error.

    cwd: the folder to run it in. environ: the environment; default: a clean one. more: further variables.
    """
    if environ is None:
        environ = clean_environ()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files = [DupFd(file.fileno()) for file in (out, err)]
        process = _forked.Process(target=_run, args=(arguments, cwd, {**environ, **more}, files), daemon=True)
        process.start()
        await asyncio.to_thread(process.join, PATIENCE)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"headwater {' '.join(arguments)}: {_text(out)} {_text(err)}")
        return process.exitcode, _text(out), _text(err)


async def start_program(*command: str, cwd: Path, **more: str) -> asyncio.subprocess.Process:
    """Start a program in a folder, with a clean environment and further variables. Its errors go to its output."""
    return await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=clean_environ() | more,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def output_of(process: asyncio.subprocess.Process) -> str:
    """Wait until a program has ended. Returns what it printed."""
    async with asyncio.timeout(PROGRAM_PATIENCE):
        printed, _ = await process.communicate()
    return printed.decode()


async def run_program(*command: str, cwd: Path) -> tuple[int | None, str]:
    """Run a program in a folder to its end. Returns its exit code and what it printed."""
    process = await start_program(*command, cwd=cwd)
    printed = await output_of(process)
    return process.returncode, printed


def _run(arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], files: Sequence[object]) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(file.detach(), number)  # type: ignore[attr-defined]  # typeshed does not declare DupFd.detach
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.exit(main(arguments))


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()
