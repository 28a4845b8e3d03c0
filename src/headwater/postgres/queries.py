"""Named queries from the `.sql` files that stand beside the Python that calls them.

A file holds queries, each begun by a line `-- name: the_name` and a comment that says what it is for.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(python_file: str) -> dict[str, str]:
    """The queries of the `.sql` file beside a module, by name: `_SQL = sql.load(__file__)`."""
    text = Path(python_file).with_suffix(".sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
