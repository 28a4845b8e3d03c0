"""The array types of PostgreSQL that Headwater's statements have.

asyncpg reads the types that it does not know from the catalog, on each connection again, and it knows no array. That
takes the server three times as long as the connection itself. These types have the same numbers everywhere.
"""

from __future__ import annotations

from typing import Any

ELEMENTS = {
    1000: ("bool", 16),
    1007: ("int4", 23),
    1009: ("text", 25),
    1016: ("int8", 20),
    1022: ("float8", 701),
    1231: ("numeric", 1700),
    2951: ("uuid", 2950),
}
"""The name and the number of the element, by the number of the array. `timestamptz` is left out, since its codec may be
replaced: see `take_times_by_number`."""

_RECORDS = [
    {
        "oid": number,
        "ns": "pg_catalog",
        "name": f"_{name}",
        "kind": b"b",
        "elemtype": element,
        "elemtype_name": name,
        "elemdelim": ",",
        "basetype": None,
        "range_subtype": None,
        "attrtypoids": None,
    }
    for number, (name, element) in ELEMENTS.items()
]
"""As asyncpg reads them from the catalog."""


def teach(connection: Any) -> None:
    """Tell a new connection the array types."""
    connection._protocol.get_settings().register_data_types(_RECORDS)  # asyncpg has no public function for it
