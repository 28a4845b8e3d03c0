"""Class keywords: `class MoneyWithdrawn(Event, version=2)`.

Messages and read models are msgspec structs. msgspec's metaclass rejects keywords that it does not know, so
Headwater's metaclass takes them out first. `__declare__` of the root class checks them, and keeps them in the attribute
`__declared__`, which no field can hide.

Type checkers see a base class without a metaclass, because mypy checks no class keywords where there is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard, TypeVar

import msgspec

from headwater.domain.stored_names import require_stored_name
from headwater.errors import DefinitionError


def require_no_dunder(cls: type, names: Iterable[str]) -> None:
    """Raise DefinitionError if a field has a name that Python or Headwater may use itself."""
    for name in names:
        if name.startswith("__") and name.endswith("__"):
            raise DefinitionError(
                f"{cls.__name__}.{name}: names between double underscores belong to Python and Headwater; rename it"
            )


def is_whole(value: object) -> bool:
    """True for a whole number. A user who runs no type checker can have given anything."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_list(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """True for a list or a tuple; a text would be a sequence of its characters."""
    return isinstance(value, list | tuple)


def name_given(cls: type, name: object) -> str:
    """Return the keyword `name`, or the name of the class if it was left out.

    Raises:
        DefinitionError: it is no text, or a name that cannot be stored.
    """
    chosen = cls.__name__ if name is None else name
    return require_stored_name(f"{cls.__name__}: its name", chosen)


def require_flag(cls: type, keyword: str, value: object) -> None:
    """Raise DefinitionError if a keyword is neither True nor False."""
    if not isinstance(value, bool):
        raise DefinitionError(f"{cls.__name__}: {keyword}={value!r} must be True or False")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return `; did you mean version?` with the known name that is most like a wrong one, or all known names."""
    alike = get_close_matches(name, known, n=1)
    return f"; did you mean `{alike[0]}`?" if alike else f"; the known ones are {', '.join(known)}"


class _KeywordMeta(msgspec.StructMeta):
    """Hands the class keywords of a subclass to the `__declare__` of its root, such as `Event`.

    The root's `__struct__`, if it has one, returns those that msgspec gets.
    """

    def __new__(
        mcls, class_name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **keywords: Any
    ) -> _KeywordMeta:
        root = next((base for base in bases if hasattr(base, "__declare__")), None)
        if root is None:  # the root itself, whose keywords are msgspec's
            return super().__new__(mcls, class_name, bases, namespace, **keywords)
        known = signature(root.__declare__).parameters
        for keyword in keywords:
            if keyword not in known:
                raise DefinitionError(
                    f"{class_name}: the class keyword `{keyword}` is unknown{did_you_mean(keyword, known)}"
                )
        try:
            given = root.__struct__(**keywords) if hasattr(root, "__struct__") else {}
            cls = super().__new__(
                mcls, class_name, bases, namespace, kw_only=True, **given
            )  # msgspec inherits no kw_only
        except (DefinitionError, ValueError) as error:  # a wrong tag, or a field with the name of the tag
            raise DefinitionError(f"{class_name}: {error}") from error
        require_no_dunder(cls, cls.__struct_fields__)
        cls.__declare__(**keywords)  # type: ignore[attr-defined]  # the root has it
        return cls

    def __init__(cls, class_name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **keywords: Any) -> None:
        super().__init__(class_name, bases, namespace)


if TYPE_CHECKING:

    class KeywordStruct:
        """The base of `Event`, `Command`, `Refusal` and `ReadModel`."""

        __struct_fields__: ClassVar[tuple[str, ...]]

    S = TypeVar("S", bound=KeywordStruct | msgspec.Struct)

    def replace(struct: S, /, **changes: object) -> S:
        """Return a copy of a row, an event or another struct with other values in the named fields."""

else:

    class KeywordStruct(msgspec.Struct, metaclass=_KeywordMeta, frozen=True, kw_only=True, gc=False):
        """The base of `Event`, `Command`, `Refusal` and `ReadModel`."""

    replace = msgspec.structs.replace
