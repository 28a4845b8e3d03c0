"""Two processes at once: one at a time starts or stops the server, and the last one that uses it may stop it.

The operating system lets go of these locks when a process dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Use:
    """The mark of a process that uses the server. It lasts until `end`, and at most as long as the process."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def end(self) -> bool:
        """Takes the mark away, and says whether it was the last."""
        if self._file is None:
            return False
        file, self._file = self._file, None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True
