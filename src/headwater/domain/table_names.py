"""What read models are called in PostgreSQL: `BankAccount` is the view `read.bank_account`, on tables with indexes that
begin so. It is checked here, where the classes are known that have to be renamed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from headwater.domain.read_model import View
from headwater.errors import DefinitionError

SCHEMA = "read"

LONGEST_NAME = 63
"""Bytes of a name in PostgreSQL. Of a longer one it takes so many, and does not mind what else is then called so."""

LONGEST_TABLE = LONGEST_NAME - len("_999999")
"""Bytes of a read model's name as a table, before the generation."""


SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
"""Columns that PostgreSQL gives each table."""


def snake_case(name: str) -> str:
    """`BankAccount` as `bank_account`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def check_relations(views: Iterable[View[Any]]) -> None:
    """Whether each read model can have the tables, indexes and view that its name stands for, and alone has them.

    Raises:
        DefinitionError: a name is too long for PostgreSQL, or two read models would share one.
    """
    owners: dict[str, str] = {}
    for view in views:
        name, model = snake_case(view.name), view.model.__name__
        if len(name.encode()) > LONGEST_TABLE:
            raise DefinitionError(
                f"{model}: {name!r} is too long for the name of its tables, which has {LONGEST_TABLE} bytes at most; "
                "give it a shorter one, class ...(ReadModel, name=...)"
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
        # What begins as a table of another is one of its generations, or an index of one.
        for match in re.finditer(r"_[0-9]+(?=_|$)", name):
            if (other := owners.get(name[: match.start()])) is not None:
                raise DefinitionError(
                    f"{model} would be {SCHEMA}.{name}, a name that a table or an index of {other} can have; rename it"
                )
