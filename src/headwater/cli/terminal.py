"""Plain text for a terminal: control characters escaped, columns aligned."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.cli.output import encodable


def printable(line: str) -> str:
    """Return the line with control characters and characters that standard output cannot encode escaped.

    Text that a client has written into the log must not control the terminal of the operator who reads it.
    """
    return encodable("".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line))


def aligned(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in plain text: numbers to the right, other text to the left, two spaces between columns."""
    texts = [list(headings), *([printable(str(value)) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    right = [bool(rows) and isinstance(value, int) for value in (rows[0] if rows else headings)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in texts
    )
