"""The tutorial: its blocks in order, and the files that they make."""

from __future__ import annotations

import re
from pathlib import Path

from headwater.cli.new import new_app

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
NEW = "headwater new shop"
"""The command that makes the app that the reader begins with."""

BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
"""The language and the text of each block."""

_FILE = re.compile(r"(?:#|<!--) ([\w/]+\.\w+)( \+)?")


def begun(within: Path) -> Path:
    """Make the app that the tutorial begins with. Returns its folder."""
    assert NEW in TEXT
    return new_app(NEW.split()[-1], within)


def write(folder: Path, block: str) -> None:
    """Write the file that the first line of a block names. `# shop/sales/domain.py +` appends to it."""
    named = _FILE.match(block)
    assert named is not None, block
    file = folder / named[1]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a" if named[2] else "w", encoding="utf-8") as opened:
        opened.write(block)
