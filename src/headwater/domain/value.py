"""Values: plain typed data that is nested in commands, events, states, rows and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import msgspec
from typing_extensions import dataclass_transform

from headwater.domain.class_keywords import KeywordStruct, name_given
from headwater.errors import DefinitionError

TAG_FIELD = "type"
"""The name under which the JSON of a value has its tag."""


@dataclass(frozen=True, slots=True)
class ValueDeclaration:
    """The class keywords of a value. name: of its GraphQL types. tag: in JSON, where it is one of several; or None."""

    name: str
    tag: str | None


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Value(KeywordStruct):
    """A part of a message or a row: frozen, keyword-only, compared by its fields.

        class OrderLine(Value):
            \"\"\"One line of an order.\"\"\"
            ticket_type_id: UUID
            quantity: Annotated[int, Meta(ge=1, le=50)] = 1

        class PlaceOrder(Command, creates=True):
            order_id: UUID
            lines: Annotated[list[OrderLine], Meta(min_length=1)]

    GraphQL has the object type `OrderLine` and the input type `OrderLineInput`; the docstring describes both. Events,
    states and rows store it as a JSON object with the Python names of its fields. Class keywords: `name` (of the
    GraphQL types, the class's name by default), and `tag` (text that stands under `type` in the JSON). A field that
    holds one of several values, `payment: Card | BankTransfer`, needs a tag for each: `class Card(Value, tag="card")`.

    Raises:
        DefinitionError: a class keyword is unknown or has a wrong value, or a tagged value has a field named `type`.
    """

    __declared__: ClassVar[ValueDeclaration] = ValueDeclaration("Value", None)

    if TYPE_CHECKING:

        def __init_subclass__(cls, *, name: str | None = None, tag: str | None = None) -> None: ...

    @classmethod
    def __struct__(cls, *, tag: object = None, **_: object) -> dict[str, object]:
        """Return the class keywords that msgspec gets."""
        if tag is None:
            return {}
        if not (isinstance(tag, str) and tag):
            raise DefinitionError(f"tag={tag!r} must be text")
        return {"tag": tag, "tag_field": TAG_FIELD}

    @classmethod
    def __declare__(cls, *, name: str | None = None, tag: str | None = None) -> None:
        cls.__declared__ = ValueDeclaration(name_given(cls, name), tag)


def tag_of(value: type[Value]) -> str | None:
    """Return the tag of a class of values, its own or that of its base; None if it has none."""
    tag: str | None = value.__struct_config__.tag  # type: ignore[attr-defined]  # type checkers do not see a struct
    return tag
