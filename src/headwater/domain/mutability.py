"""States must be values that nothing can change: one object is shared by all decisions on its stream.

Refused at the start, from the annotation of the state:

- containers that can be changed: list, dict, set, bytearray, deque and their abstract classes, also as the type of a
  field. `tuple`, `frozenset`, `Mapping` and `Sequence` are accepted: a type checker refuses to change them.
- a dataclass or a struct that is not frozen, also as the type of a field.

A message, such as a `Value` with a list, is accepted as it is: it is frozen, and clients need its lists. Other classes
are accepted, since their declarations do not show whether they can be changed; the guard of purity notices if one is.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence, MutableSet
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from headwater.domain.class_keywords import KeywordStruct
from headwater.errors import DefinitionError

_MUTABLE = (MutableSequence, MutableMapping, MutableSet)
_INSTEAD = "annotate it with tuple, frozenset or Mapping"


def require_immutable(what: str, state: object, above: tuple[object, ...] = ()) -> None:
    """Check the annotation of a state, or of a part of one. what: the part, as error messages name it.

    Raises:
        DefinitionError: it can be changed.
    """
    state = getattr(state, "__value__", state)  # of `type X = ...`
    if state in above:
        return  # a recursive type
    origin = get_origin(state)
    of = state if origin is None else origin
    if isinstance(of, type):
        if issubclass(of, _MUTABLE):
            raise DefinitionError(f"{what} is a {of.__name__}, which can be changed in place; {_INSTEAD}")
        if issubclass(of, KeywordStruct):
            return
        _require_frozen(what, of, (*above, state))
    for part in get_args(state):
        if part is not ...:
            require_immutable(what, part, (*above, state))


def _require_frozen(what: str, cls: type, above: tuple[object, ...]) -> None:
    if issubclass(cls, msgspec.Struct):
        frozen, names = cls.__struct_config__.frozen, cls.__struct_fields__
        form = f"class {cls.__name__}(msgspec.Struct, frozen=True)"
    elif is_dataclass(cls):
        parameters: Any = cls.__dataclass_params__  # type: ignore[attr-defined]  # the stubs lack it
        frozen, names = parameters.frozen, tuple(each.name for each in fields(cls))
        form = "@dataclass(frozen=True)"
    else:
        return
    if not frozen:
        raise DefinitionError(f"{what} is a {cls.__name__}, which can be changed in place; declare it with {form}")
    try:
        hints = get_type_hints(cls)
    except Exception as error:
        raise DefinitionError(f"{cls.__name__}: an annotation cannot be resolved: {error}") from error
    for name in names:
        require_immutable(f"{cls.__name__}.{name}", hints[name], above)
