"""Connections know the array types of Headwater's statements without reading them from the catalog."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from headwater.postgres.array_types import ELEMENTS
from headwater.postgres.database import Database

VALUES: dict[str, Any] = {
    "bool": True,
    "float8": 0.1,
    "int4": -(2**31),
    "int8": 2**63 - 1,
    "numeric": Decimal("0.10"),
    "text": 'a,"{}',
    "uuid": UUID(int=7),
}


async def test_the_numbers_of_the_types_are_those_of_the_catalog(connection: asyncpg.Connection) -> None:
    found = await connection.fetch("select typarray, typname, oid from pg_type where typarray = any($1)", [*ELEMENTS])
    assert {array: (name, element) for array, name, element in found} == ELEMENTS


async def test_no_array_type_is_read_from_the_catalog(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_: object, numbers: object, *__: object) -> None:
        raise AssertionError(f"the types {numbers} are read from the catalog")

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", read)
    assert {name for name, _ in ELEMENTS.values()} == VALUES.keys()
    async with Database(dsn, pool_size=1) as database:
        outside = await database.connect("test")
        for name, value in VALUES.items():
            for connection in (outside, database.pool):
                assert await connection.fetchval(f"select $1::{name}[]", [[value, None]]) == [[value, None]]
        await outside.close()
