"""The rule for names of declarations that the database stores: of categories, messages, sagas, reactors and so on.

They are in the log, in keys of indexes, in the messages of NOTIFY and in lines for operators, whose lengths PostgreSQL
and terminals bound.
"""

from __future__ import annotations

from headwater.errors import DefinitionError

LONGEST_STORED_NAME = 200
"""Characters. Two such names fit into one key of an index in PostgreSQL, which has 2,704 bytes at most."""

_SHOWN = 60


def require_stored_name(what: str, name: object) -> str:
    """Return a name. Raise DefinitionError if it cannot be stored, or not be shown on one line.

    what: the thing that has the name. A user who runs no type checker can have given anything as the name.
    """
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not 0 < len(name.strip()) <= len(name) <= LONGEST_STORED_NAME
    ):
        raise DefinitionError(
            f"{what} has 1 to {LONGEST_STORED_NAME} characters that can be printed on one line, not {_shown(name)}"
        )
    return name


def require_word(what: str, name: object) -> None:
    """Raise DefinitionError if a name is not a word, so that a command line and a metric can name it without quotes."""
    if not isinstance(name, str) or not name.isidentifier():
        raise DefinitionError(f"{what} is letters, digits and underscores, not {_shown(name)}")
    require_stored_name(what, name)


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
