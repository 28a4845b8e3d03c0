"""Warns of money in a `float`, which cannot hold 0.10 exactly."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from typing import get_args, get_origin, get_type_hints

import msgspec

from headwater.errors import FloatForMoney

_MONEY = re.compile(
    r"(?:^|_)(?:amount|balance|charge|cost|credit|debit|deposit|discount|fee|income|money|payment|payout|price|refund"
    r"|revenue|salary|subtotal|tax|tip|total|turnover|wage)s?(?:_|$)"
)
_NO_MONEY = re.compile(r"_(?:factor|fraction|percent|percentage|rate|ratio|score|share|weight)$")


def warn_of_float_money(classes: Iterable[type]) -> None:
    """Warn of each field that has the name of an amount of money and the type float.

    classes: messages, rows and states. The values that they are made of are looked at, too.
    """
    seen, left = set[type](), list(classes)
    while left:
        cls = left.pop()
        if cls in seen or not (is_dataclass(cls) or issubclass(cls, msgspec.Struct)):
            continue
        seen.add(cls)
        for name, hint in get_type_hints(cls).items():
            leaves = list(_leaves(hint))
            left += leaves
            if float in leaves and _is_money(name):
                warnings.warn(
                    f"{cls.__name__}.{name} is a float, which cannot hold an amount such as 0.10 exactly; use Decimal,"
                    " as in Annotated[Decimal, Exact(places=2)], or rename it if it is no money",
                    FloatForMoney,
                    stacklevel=2,
                )


def _is_money(name: str) -> bool:
    return _MONEY.search(name.casefold()) is not None and _NO_MONEY.search(name.casefold()) is None


def _leaves(annotation: object) -> Iterator[type]:
    """Yield the classes that an annotation is made of."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)
