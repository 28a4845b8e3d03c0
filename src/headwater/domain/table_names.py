"""The names of read models in PostgreSQL.

`BankAccount` is the SQL view `read.bank_account`; the names of its tables and indexes begin with `bank_account`. They
are checked here, where the classes are known, so that an error can name the class to rename.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from headwater.domain.read_model import AnyView
from headwater.errors import DefinitionError

SCHEMA = "read"

LONGEST_NAME = 63
"""The longest name in PostgreSQL, in bytes. It cuts longer names off silently, so that two could become one."""

LONGEST_TABLE = LONGEST_NAME - len("_999999")
"""The longest read model name in snake_case, in bytes. The rest is for the number of the generation."""

SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
"""The columns that PostgreSQL adds to each table."""


def snake_case(name: str) -> str:
    """Return `bank_account` for `BankAccount`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def check_relations(views: Iterable[AnyView]) -> None:
    """Check that each read model's tables, indexes and SQL view have valid names that no other read model uses.

    Raises:
        DefinitionError: a name is too long for PostgreSQL, or two read models would share one.
    """
    owners: dict[str, str] = {}
    for view in views:
        name, model = snake_case(view.name), view.model.__name__
        if len(name.encode()) > LONGEST_TABLE:
            raise DefinitionError(
                f"{model}: {name!r} is too long for the name of its tables, which has {LONGEST_TABLE} bytes at most; "
                "give it a shorter name, class ...(ReadModel, name=...)"
            )
        for column in view.fields:
            if len(column.name.encode()) > LONGEST_NAME:
                raise DefinitionError(
                    f"{model}.{column.name}: the name of a column has {LONGEST_NAME} bytes at most; rename it"
                )
            if column.name in SYSTEM_COLUMNS:
                raise DefinitionError(
                    f"{model}.{column.name}: PostgreSQL gives each table a column `{column.name}` of its own; rename it"
                )
        if name in owners:
            raise DefinitionError(f"{owners[name]} and {model} would both be {SCHEMA}.{name}; rename one of them")
        owners[name] = model
    for name, model in owners.items():
        # A table of a generation is named `<name>_<number>`, and its indexes begin with that name.
        for match in re.finditer(r"_[0-9]+(?=_|$)", name):
            if (other := owners.get(name[: match.start()])) is not None:
                raise DefinitionError(
                    f"{model} would be {SCHEMA}.{name}, a name that a table or an index of {other} can have; rename it"
                )
