"""The GraphQL types of nested values: one object type and one input type for each class, made when first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union

import strawberry

from headwater.domain.fields import Field, Kind, element_of, fields_of
from headwater.domain.graphql_names import camel, field_name, union_name
from headwater.domain.messages import sentence_of
from headwater.domain.validation import chosen_value
from headwater.domain.value import TAG_FIELD, Value, tag_of
from headwater.graphql.bounds import has_bounds, within
from headwater.graphql.building import Annotation, Generated, Info, new_class, python_type, resolver

_OMITTED = strawberry.UNSET


class ValueTypes:
    """The types of nested values of one schema."""

    def __init__(self) -> None:
        self._objects: dict[type[Value], Generated] = {}
        self._inputs: dict[type[Value], Generated] = {}
        self._unions: dict[tuple[type[Value], ...], Annotation] = {}
        self._choices: dict[tuple[type[Value], ...], Generated] = {}

    def output(self, each: Field) -> Annotation:
        """Return the annotation of a field of an object type."""
        if each.kind is Kind.VALUE:
            return _whole(each, self._object(each.values[0]))
        return _whole(each, self._union(each.values) if each.kind is Kind.UNION else python_type(each))

    def input(self, each: Field) -> Annotation:
        """Return the annotation of a field of an input type."""
        if each.kind is Kind.VALUE:
            return _whole(each, self._input(each.values[0]))
        return _whole(each, self._choice(each.values) if each.kind is Kind.UNION else python_type(each))

    def add_output(self, cls: Generated, each: Field) -> None:
        """Add a field to an object type whose instances have an attribute of the same name."""
        cls.__annotations__[each.name] = self.output(each)
        if each.description:
            setattr(cls, each.name, strawberry.field(description=each.description))

    def add_input(self, cls: Generated, each: Field, *, needed: bool) -> None:
        """Add a field to an input type. needed: clients cannot leave it out."""
        annotation = self.input(each)
        cls.__annotations__[each.name] = annotation if needed else annotation | None
        if each.description:
            default = {} if needed else {"default": _OMITTED}
            setattr(cls, each.name, strawberry.field(description=each.description, **default))
        elif not needed:
            setattr(cls, each.name, _OMITTED)

    def _object(self, value: type[Value]) -> Generated:
        if value not in self._objects:
            name = value.__declared__.name

            def is_type_of(root: object, info: Info) -> bool:
                return isinstance(root, value)

            cls = new_class(name, is_type_of=staticmethod(is_type_of))
            for each in fields_of(value):
                if has_bounds(each):
                    field = strawberry.field(
                        resolver=resolver(_bounded(name, each), self.output(each)), description=each.description
                    )
                    cls.__annotations__[each.name] = self.output(each)  # it gives the field its place
                    setattr(cls, each.name, field)
                else:
                    self.add_output(cls, each)
            self._objects[value] = strawberry.type(cls, description=sentence_of(value))
        return self._objects[value]

    def _union(self, values: tuple[type[Value], ...]) -> Annotation:
        if values not in self._unions:
            either: Annotation = Union.__getitem__(tuple(map(self._object, values)))  # known at run time only
            self._unions[values] = Annotated[either, strawberry.union(name=union_name(values))]
        return self._unions[values]

    def _input(self, value: type[Value]) -> Generated:
        if value not in self._inputs:
            cls = new_class(f"{value.__declared__.name}Input")
            for each in fields_of(value):
                self.add_input(cls, each, needed=each.required)
            self._inputs[value] = strawberry.input(cls, description=sentence_of(value))
        return self._inputs[value]

    def _choice(self, values: tuple[type[Value], ...]) -> Generated:
        """Return the input of one of several values, with a field for each of them."""
        if values not in self._choices:
            cls = new_class(f"{union_name(values)}Input")
            for value in values:
                name = _choice_of(value)
                cls.__annotations__[name] = self._input(value) | None
                setattr(cls, name, strawberry.field(name=camel(value.__declared__.name), default=_OMITTED))
            self._choices[values] = strawberry.input(cls, one_of=True, description="Exactly one of these.")
        return self._choices[values]


def _whole(each: Field, one: Annotation) -> Annotation:
    whole = list[one] if each.many else one
    return whole | None if each.optional else whole


def _choice_of(value: type[Value]) -> str:
    return camel(value.__declared__.name)


def _bounded(owner: str, each: Field) -> Callable[..., object]:
    def resolve(root: object, info: Info) -> object:
        return within(owner, each, getattr(root, each.name))

    return resolve


# ---------------------------------------------------------------------------------------------------------------- input


def given_fields(fields: Sequence[Field], given: Any) -> dict[str, Any]:
    """Return the values that a client gave for an input object, by field name. Nested ones are dicts, too."""
    return {
        each.name: _given(each, value)
        for each in fields
        if (value := getattr(given, each.name)) is not strawberry.UNSET
    }


def _given(each: Field, value: Any) -> Any:
    if value is None or not each.values:
        return value
    if each.many:
        element = element_of(each)
        return [_given(element, one) for one in value]
    if each.kind is Kind.VALUE:
        return given_fields(fields_of(each.values[0]), value)
    for chosen in each.values:
        inner = getattr(value, _choice_of(chosen))
        if inner is not strawberry.UNSET and inner is not None:
            return {TAG_FIELD: tag_of(chosen), **given_fields(fields_of(chosen), inner)}
    return {}


def shown_path(fields: Sequence[Field], path: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Return the path of a value as it is in the client's input. values: those of `given_fields`.

    A path that leads nowhere, as a decision may give, is shown with the names of GraphQL.
    """
    if not path:
        return []
    name, *rest = path
    each = next((each for each in fields if each.name == name), None)
    if each is None:
        return [field_name(step) for step in path]
    return [field_name(name), *_shown_inside(each, rest, values.get(name))]


def _shown_inside(each: Field, path: Sequence[str], value: Any) -> list[str]:
    if not path:
        return []
    step, *rest = path
    if each.many:
        index = int(step) if step.isdecimal() else len(value or ())
        inner = value[index] if isinstance(value, list) and index < len(value) else None
        return [step, *_shown_inside(element_of(each), rest, inner)]
    if each.inner is not None:
        return [step, *_shown_inside(each.inner, rest, value.get(step) if isinstance(value, Mapping) else None)]
    chosen = chosen_value(each, value) if isinstance(value, Mapping) else None
    if chosen is None:
        return [field_name(step) for step in path]
    shown = shown_path(fields_of(chosen), path, value)
    return [_choice_of(chosen), *shown] if each.kind is Kind.UNION else shown
