"""Watches the Python files of the current folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

LOOK_AGAIN_SECONDS = 0.2

_PASSED_OVER = {"__pycache__", "build", "dist", "node_modules"}


class SourceFiles:
    """The Python files below a folder, without hidden folders, virtual environments and what tools have made.

    They are compared by time and size, several times a second: that works on every system and in containers, where the
    notices of the file system may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._look()

    async def changed(self) -> set[Path]:
        """Return the files that were changed, added or removed since the last call, as soon as there is one."""
        while (now := self._look()) == self._seen:  # noqa: ASYNC110 - files send no signal
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        before, self._seen = self._seen, now
        return {Path(path) for path, _ in before.items() ^ now.items()}

    def _look(self) -> Mapping[str, tuple[int, int]]:
        found = {}
        for file in _python_files(str(self._folder)):
            try:
                stat = file.stat()
            except FileNotFoundError:  # removed meanwhile
                continue
            found[file.path] = (stat.st_mtime_ns, stat.st_size)
        return found


def _python_files(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, PermissionError):
        return
    if any(entry.name == "pyvenv.cfg" for entry in entries):
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _PASSED_OVER:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _python_files(entry.path)
        elif entry.name.endswith(".py"):
            yield entry
