"""Checks for numbers that Python and PostgreSQL can hold and GraphQL cannot show. The error names the field."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from headwater.domain.fields import Field, Kind
from headwater.domain.graphql_names import field_name
from headwater.errors import NumberOutOfRange

_INT = range(-(2**31), 2**31)


_FITS: dict[Kind, tuple[Callable[[Any], bool], str]] = {
    Kind.INT: (_INT.__contains__, "a whole number that does not fit the 32 bits of an Int"),
    Kind.FLOAT: (math.isfinite, "a number that is not finite"),
}


def has_bounds(each: Field) -> bool:
    """True if a field can hold a number that GraphQL cannot show."""
    return each.kind in _FITS


def within(owner: str, each: Field, value: Any) -> Any:
    """Return the value of a field that has bounds. owner: the name of the type that has the field.

    Raises:
        NumberOutOfRange: an int of more than 32 bits, or a float that is not finite.
    """
    fits, what = _FITS[each.kind]
    if value is not None and not all(map(fits, value if each.many else (value,))):
        raise NumberOutOfRange(f"{owner}.{field_name(each.name)} holds {what}.")
    return value
