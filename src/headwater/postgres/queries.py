"""Named queries from the `.sql` files beside the Python modules that run them.

Each query of a file begins with a line `-- name: the_name` and a comment with its purpose.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(python_file: str) -> dict[str, str]:
    """Return the queries of the `.sql` file beside a module, by name: `_SQL = queries.load(__file__)`."""
    text = Path(python_file).with_suffix(".sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
