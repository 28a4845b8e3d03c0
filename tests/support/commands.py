"""Runs `headwater ...` as an operator does, each command in a process of its own.

The processes are forked from one that has loaded the modules, since loading takes longer than most commands. The start
of a new interpreter is tested in `tests/acceptance`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import BinaryIO

from headwater.cli import main

ROOT = Path(__file__).parents[2]
CLI = ROOT / "src" / "headwater" / "cli"
PATIENCE = 60
PROGRAM_PATIENCE = 100

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(
    ["bank.main", "headwater.server.web", *(f"headwater.cli.{file.stem}" for file in CLI.glob("[a-z]*.py"))]
)


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
        process = Forked(arguments, cwd, {**environ, **more}, out.fileno(), err.fileno())
        try:
            code = await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            process.kill()
            raise TimeoutError(f"headwater {' '.join(arguments)}: {_text(out)} {_text(err)}") from None
        return code, _text(out), _text(err)


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


class Forked:
    """A command that runs. The methods are those of asyncio's `Process`.

    out, err: file descriptors for what it prints; they are duplicated. None: those of the tests.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str],
        out: int | None = None,
        err: int | None = None,
    ) -> None:
        files = {1: None if out is None else DupFd(out), 2: None if err is None else DupFd(err)}
        self.stdout: asyncio.StreamReader | None = None
        self._pipe: asyncio.ReadTransport | None = None
        self._process: BaseProcess = _forked.Process(target=_run, args=(arguments, cwd, environ, files), daemon=True)
        self._process.start()

    @classmethod
    async def piped(cls, arguments: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> Forked:
        """Start a command. What it prints, also on standard error, is read from `stdout` until `close`."""
        ours, theirs = os.pipe()
        process = cls(arguments, cwd, environ, theirs, theirs)
        os.close(theirs)
        process.stdout = stdout = asyncio.StreamReader()
        process._pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(ours, "rb")
        )
        return process

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, sent: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, sent)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()
        assert self.returncode is not None
        return self.returncode

    async def close(self) -> None:
        """Kill the process if it runs, and close the pipe."""
        self.kill()
        await self.wait()
        if self._pipe is not None:
            self._pipe.close()


def _run(arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], files: Mapping[int, object | None]) -> None:
    for number, file in files.items():
        if file is not None:
            os.dup2(file.detach(), number)  # type: ignore[attr-defined]  # typeshed does not declare DupFd.detach
    # New ones, as a new interpreter makes them: those of the fork belong to the files of the tests.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.exit(main(arguments))


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()
