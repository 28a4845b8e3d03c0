"""A mistake in an app's declarations stops the start with an error that names the class and the field."""
# No `from __future__ import annotations`: annotations are evaluated at once, so that they can name classes of a test.

import dataclasses
import enum
import re
import types
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, cast
from uuid import UUID

import pytest
from graphql import GraphQLInputObjectType
from msgspec import Meta

from bank.accounts.feature import accounts
from bank.transfers.feature import transfers
from bank.users.feature import users
from headwater import (
    Command,
    Decider,
    Event,
    Exact,
    Feature,
    InvalidField,
    Link,
    ReadModel,
    Recorded,
    Refusal,
    Value,
    View,
)
from headwater.consumers.leases import LEASES
from headwater.consumers.scheduler import SCHEDULES
from headwater.domain.decider import AnyDecider
from headwater.domain.feature import Domain
from headwater.domain.fields import Field, Kind, fields_of
from headwater.domain.graphql_names import KEPT, SAGA_TYPES, TYPES, field_name
from headwater.domain.messages import EVERY_COMMAND_REFUSES
from headwater.errors import DefinitionError
from headwater.eventstore.doorbell import EPOCH
from headwater.eventstore.positions import LOG
from headwater.graphql.schema import print_schema, schema_of


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Bits(enum.IntFlag):
    ONE = 1


class Colour(enum.Enum):
    RED = "RED"


class Open(Command):
    thing_id: UUID


class Opened(Event):
    thing_id: UUID


class Closed(Event):
    thing_id: UUID


class State:
    pass


def decide(command: Open, state: State) -> list[Opened]:
    return [Opened(thing_id=command.thing_id)]


def evolve(state: State, event: Opened) -> State:
    return state


def decider(
    decide: Callable[..., Any] = decide,
    evolve: Callable[..., Any] = evolve,
    *,
    category: str = "thing",
    key: str = "thing_id",
) -> AnyDecider:
    return Decider(category=category, key=key, initial=State(), decide=decide, evolve=evolve)


class Thing(ReadModel, key="thing_id"):
    thing_id: UUID


def fold(row: Any, event: Recorded[Opened]) -> Any:
    """A fold of any read model."""
    return row


def says(sentence: str) -> Any:
    """Expect a DefinitionError with exactly this message; `...` stands for a module's name or words of Python."""
    return pytest.raises(DefinitionError, match="^" + re.escape(sentence).replace(r"\.\.\.", "[^;]*") + "$")


def domain(*deciders: AnyDecider, views: list[View[Any]] | None = None) -> Domain:
    return Domain([Feature(deciders=[decider], views=[]) for decider in deciders] + [Feature(views=views or [])])


def test_valid_declarations_are_accepted() -> None:
    made = domain(decider(), views=[View(Thing, fold)])
    assert made.decider_of.keys() == {Open}
    assert made.category_of == {Opened: "thing"}
    assert made.view_of.keys() == {Thing}


# -------------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("version", [0, -1, 40_000])
def test_an_events_version_must_fit_the_log(version: int) -> None:
    with says(f"Odd: version={version} must be a whole number from 1 to 32767"):

        class Odd(Event, version=version):
            thing_id: UUID


# --------------------------------------------------------------------------------------------------------------- fields

WORDS = " is a type that GraphQL and SQL cannot both carry; "


class Untagged(Value):
    number: str


class Tagged(Value, tag="tagged"):
    number: str


class Nested(Value):
    deep: list[set[str]]


class Endless(Value):
    inner: "list[Endless]"


@dataclasses.dataclass(frozen=True)
class Plain:
    number: str


ONE_OF = "use one of str, int, float, bool, Decimal, UUID, datetime, date, time, timedelta, bytes, an Enum of"


@pytest.mark.parametrize(
    "annotation, complaint",
    [
        (set[str], f"Odd.value: set[str]{WORDS}use a list, or a tuple[..., ...]"),
        (frozenset[UUID] | None, f"Odd.value: frozenset[UUID] | None{WORDS}use a list, or a tuple[..., ...]"),
        (dict[int, str], f"Odd.value: dict[int, str]{WORDS}use dict[str, ...], as JSON has only text as keys"),
        (dict, f"Odd.value: dict{WORDS}say of what: dict[str, str]"),
        (list, f"Odd.value: list{WORDS}say of what: list[str]"),
        (int | str, f"Odd.value: int | str{WORDS}of several types only Values can be one field, each with a tag: "),
        (list[list[int]], f"Odd.value: list[list[int]]{WORDS}put the inner list into a Value"),
        (tuple[int, str], f"Odd.value: tuple[int, str]{WORDS}use a Value with a field for each part"),
        (Literal["a", "b"], f"Odd.value: Literal['a', 'b']{WORDS}use an Enum"),
        (Mixed, f"Odd.value: Mixed{WORDS}use an Enum whose members are all strings, or all whole numbers of 64 bits"),
        (Bits, f"Odd.value: Bits{WORDS}use an Enum whose members are all strings, or all whole numbers of 64 bits"),
        (Plain, f"Odd.value: Plain{WORDS}make it a Value: class Plain(Value)"),
        (Any, f"Odd.value: Any{WORDS}name a type, such as dict[str, str] or a Value"),
        (dict[str, Any], f"Odd.value[...]: Any{WORDS}name a type, such as dict[str, str] or a Value"),
        (complex, f"Odd.value: complex{WORDS}{ONE_OF}"),
        (Nested, f"Nested.deep: list[set[str]]{WORDS}use a list, or a tuple[..., ...]"),
        (Tagged | Untagged, "Odd.value: Untagged is one of several values and needs a tag: class Untagged(Value, "),
        (
            Endless,
            "Endless.inner: Endless contains itself; events and states can, commands, refusals ",
        ),
    ],
    ids=str,
)
def test_commands_refusals_and_rows_have_types_that_graphql_and_sql_carry(annotation: Any, complaint: str) -> None:
    class Odd(Command):
        thing_id: UUID
        value: annotation

    with pytest.raises(DefinitionError) as caught:
        fields_of(Odd)
    assert str(caught.value).startswith(complaint)


def test_the_types_of_fields_are_checked_in_commands_refusals_and_read_models() -> None:
    class Odd(Command):
        thing_id: UUID
        value: set[str]

    class NotSo(Refusal):
        value: set[str]

    class Close(Command):
        thing_id: UUID

    class OddThing(ReadModel, key="thing_id"):
        thing_id: UUID
        value: set[str]

    def decide_odd(command: Odd, state: State) -> list[Opened]:
        return []

    def decide_close(command: Close, state: State) -> list[Opened] | NotSo:
        return []

    with pytest.raises(DefinitionError, match=r"^Odd\.value: set\[str\] is a type that"):
        domain(decider(decide_odd))
    with pytest.raises(DefinitionError, match=r"^NotSo\.value: set\[str\] is a type that"):
        domain(decider(decide_close))
    with pytest.raises(DefinitionError, match=r"^OddThing\.value: set\[str\] is a type that"):
        View(OddThing, fold)


def test_a_list_cannot_have_optional_values() -> None:
    class Odd(Command):
        thing_id: UUID
        values: list[int | None]

    with says("Odd.values: the values of a list cannot be None; leave `| None` out"):
        fields_of(Odd)


def test_exact_bounds_decimals_only() -> None:
    class Odd(Command):
        value: Annotated[int, Exact(above=0)]

    with says("Odd.value: Exact bounds a Decimal, not int"):
        fields_of(Odd)


def test_exact_must_stand_inside_a_list() -> None:
    class Odd(Command):
        values: Annotated[list[Decimal], Exact(above=0)]

    with says("Odd.values: Exact bounds a Decimal, not a list of them; write list[Annotated[Decimal, ...]]"):
        fields_of(Odd)


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[Decimal, Meta(gt=0)],
        Annotated[Decimal | None, Meta(le=1, description="A share.")],
        Annotated[list[Annotated[Decimal, Meta(ge=0)]], Meta(max_length=3)],
    ],
)
def test_meta_cannot_bound_a_decimal(annotation: Any) -> None:
    class Odd(Command):
        value: annotation

    with says(
        "Odd.value: msgspec's Meta cannot bound a Decimal; use headwater.Exact, as in Annotated[Decimal, Exact(above=0,"
        " places=2)]"
    ):
        fields_of(Odd)


def test_meta_may_describe_a_decimal_and_bound_a_list_of_decimals() -> None:
    class Right(Command):
        value: Annotated[Decimal, Meta(description="How much.")]
        values: Annotated[list[Decimal], Meta(max_length=3)]

    assert [each.kind for each in fields_of(Right)] == [Kind.DECIMAL, Kind.DECIMAL]


def test_an_enum_must_have_members() -> None:
    class Nothing(enum.Enum):
        pass

    class Odd(Command):
        value: Nothing

    with says("Odd.value: the enum Nothing has no members; add one"):
        fields_of(Odd)


def test_a_bound_must_fit_the_type_of_its_field() -> None:
    class Odd(Command):
        thing_id: UUID
        text: Annotated[str, Meta(gt=0)]

    def decide_odd(command: Odd, state: State) -> list[Opened]:
        return []

    with pytest.raises(DefinitionError, match=r"^Odd\.text cannot be read from JSON: Can only set `gt` on a numeric"):
        domain(decider(decide_odd))


def test_an_annotation_of_a_field_must_be_resolvable() -> None:
    class Odd(Command):
        value: "Nowhere"  # type: ignore[name-defined]  # noqa: F821

    with says("Odd: an annotation cannot be resolved: name 'Nowhere' is not defined"):
        fields_of(Odd)


def test_fields_of_returns_kind_and_bounds_of_each_field() -> None:
    class Full(Command):
        thing_id: UUID
        amount: Annotated[Decimal, Exact(places=2)]
        note: str | None = None
        colours: list[Colour]
        amounts: list[Annotated[Decimal, Exact(places=1)]] | None = None

    assert fields_of(Full) == (
        Field("thing_id", Kind.UUID, optional=False, many=False, required=True),
        Field("amount", Kind.DECIMAL, optional=False, many=False, required=True, exact=Exact(places=2)),
        Field("note", Kind.TEXT, optional=True, many=False, required=False),
        Field("colours", Kind.ENUM, optional=False, many=True, required=True, enum=Colour),
        Field("amounts", Kind.DECIMAL, optional=True, many=True, required=False, exact=Exact(places=1)),
    )


# --------------------------------------------------------------------------------------------------- names, and the app


def test_two_events_cannot_have_one_stored_name() -> None:
    class Other(Event, name="Opened"):
        other_id: UUID

    class Do(Command):
        other_id: UUID

    def decide_other(command: Do, state: State) -> list[Other]:
        return []

    def evolve_other(state: State, event: Other) -> State:
        return state

    with says("...Opened and ...Other are both stored as 'Opened'; give one of them another `name=`"):
        domain(decider(), decider(decide_other, evolve_other, category="other", key="other_id"))


def test_a_message_cannot_belong_to_two_deciders() -> None:
    class Do(Command):
        thing_id: UUID

    def decide_other(command: Do, state: State) -> list[Opened]:
        return []

    with says("Open is decided by both thing and other"):
        domain(decider(), decider(category="other"))
    with says("Opened belongs to both thing and other"):
        domain(decider(), decider(decide_other, category="other"))


def test_two_declarations_of_one_kind_cannot_have_one_name() -> None:
    class Open2(Command, name="open"):
        thing_id: UUID

    class Opened2(Event):
        thing_id: UUID

    class Thing2(ReadModel, key="thing_id", name="THING"):
        thing_id: UUID

    def decide2(command: Open2, state: State) -> list[Opened2]:
        return []

    def evolve2(state: State, event: Opened2) -> State:
        return state

    with says("The app has two declarations of a category named 'Thing'; rename one of them"):
        domain(decider(), decider(decide2, evolve2, category="Thing"))
    with says("The app has two declarations of a command named 'open'; rename one of them"):
        domain(decider(), decider(decide2, evolve2, category="other"))
    with says("The category 'saga Thing' is kept for the streams of sagas; give the decider another category"):
        domain(decider(category="saga Thing"))
    with says("The app has two declarations of a read model named 'THING'; rename one of them"):
        domain(decider(), views=[View(Thing, fold), View(Thing2, fold)])


# --------------------------------------------------------------------------------------------------- names in GraphQL


def deciders_of(*commands: type[Command], **refuses: list[type[Refusal]]) -> list[AnyDecider]:
    """Return a decider for each command. refuses: the refusals of a command, by its name."""

    def one(command: type[Command]) -> AnyDecider:
        refusals = refuses.get(command.__declared__.name, [])

        class Happened(Event, name=f"{command.__name__}Happened"):
            thing_id: UUID

        def decide_one(given: command, state: State) -> list[Happened]:  # type: ignore[valid-type]  # at run time
            return []

        decide_one.__annotations__["return"] = Union.__getitem__((list[Happened], *refusals))

        def evolve_one(state: State, event: Happened) -> State:
            return state

        return decider(decide_one, evolve_one, category=command.__name__)

    return [one(command) for command in commands]


def colour(*names: str) -> type[enum.Enum]:
    return enum.Enum("Shade", {name: name for name in names}, module=__name__)  # type: ignore[return-value]  # a class


def refusal(name: str) -> type[Refusal]:
    return types.new_class(name, (Refusal,), {}, lambda body: body.update({"__module__": __name__}))


BOTH = "would both be `{}` in GraphQL; rename one of them"
NO_NAME = "is not a valid name in GraphQL; use the letters A to Z, digits and underscores, and begin with a letter"


def test_two_refusals_cannot_have_one_name() -> None:
    class Do(Command):
        thing_id: UUID

    class Redo(Command, internal=True):
        thing_id: UUID

    class Undo(Command):
        thing_id: UUID

    with says(f"the refusal ...No and the refusal ...No {BOTH.format('No')}"):
        domain(*deciders_of(Do, Redo, Do=[refusal("No")], Redo=[refusal("No")]))
    with says(f"the refusal ...VersionConflict and the refusal ...VersionConflict {BOTH.format('VersionConflict')}"):
        domain(*deciders_of(Undo, Undo=[refusal("VersionConflict")]))


def test_two_refusals_cannot_have_one_code() -> None:
    class Do(Command):
        thing_id: UUID

    with says(f"the refusal ...NotOpen and the refusal ...Not_Open {BOTH.format('NOT_OPEN')}"):
        domain(*deciders_of(Do, Do=[refusal("NotOpen"), refusal("Not_Open")]))


def test_two_enums_cannot_have_one_name() -> None:
    class Do(Command):
        thing_id: UUID
        shade: colour("RED")  # type: ignore[valid-type]

    class Redo(Command):
        thing_id: UUID
        shade: colour("BLUE")  # type: ignore[valid-type]

    with says(f"the enum ...Shade and the enum ...Shade {BOTH.format('Shade')}"):
        domain(*deciders_of(Do, Redo))


def test_two_fields_cannot_have_one_name_in_graphql() -> None:
    class Do(Command):
        thing_id: UUID
        thingId: str  # noqa: N815 - the mistake

    class No(Refusal):
        what_for: str
        whatFor: str  # noqa: N815 - the mistake

    class Redo(Command):
        thing_id: UUID

    class Linked(ReadModel, key="thing_id"):
        thing_id: UUID
        otherThing: str  # noqa: N815 - the mistake
        other_thing = Link(Thing, by="thing_id")

    with says(f"Do.thing_id and Do.thingId {BOTH.format('thingId')}"):
        domain(*deciders_of(Do))
    with says(f"No.what_for and No.whatFor {BOTH.format('whatFor')}"):
        domain(*deciders_of(Redo, Redo=[No]))
    with says(f"Linked.otherThing and Linked.other_thing {BOTH.format('otherThing')}"):
        domain(decider(), views=[View(Thing, fold), View(Linked, fold)])


def test_names_must_be_valid_in_graphql() -> None:
    class Do(Command, name="do it"):
        thing_id: UUID

    class Redo(Command):
        thing_id: UUID
        größe: int

    class Undo(Command):
        thing_id: UUID
        shade: colour("RED", "GRÜN")  # type: ignore[valid-type]

    with says(f"the command ...Do: 'do it' {NO_NAME}"):
        domain(*deciders_of(Do))
    with says(f"Redo.größe: 'größe' {NO_NAME}"):
        domain(*deciders_of(Redo))
    with says(f"Shade.GRÜN: 'GRÜN' {NO_NAME}"):
        domain(*deciders_of(Undo))


@pytest.mark.parametrize("name", ["true", "false", "null"])
def test_an_enum_member_cannot_be_a_literal_of_graphql(name: str) -> None:
    class Do(Command):
        thing_id: UUID
        shade: colour("RED", name)  # type: ignore[valid-type]

    with says(f"Shade.{name}: an enum's member cannot have this name, because it is a literal of GraphQL; rename it"):
        domain(*deciders_of(Do))


@pytest.mark.parametrize("name", ["and_", "or_", "not_"])
def test_a_read_models_field_cannot_have_the_name_of_a_combinator_of_filters(name: str) -> None:
    with says(f"Thing.{name}: a filter has `{name[:-1]}` of its own; rename it"):
        domain(decider(), views=[named("Thing", **{name: str})])


@pytest.mark.parametrize("name", ["root", "info", "at_least", "as_of", "atLeast", "asOf"])
def test_a_key_cannot_have_the_name_of_another_argument(name: str) -> None:
    sentence = "a key cannot have this name, because an argument of Headwater has it; rename the key"
    with says(f"Thing.{name}: {sentence}"):
        domain(decider(), views=[named("Thing", name)])
    # Any other field may have the name.
    domain(decider(), views=[named("Thing", **{name: str})])


def test_two_fields_cannot_result_in_one_member_of_the_order() -> None:
    with says(f"Thing.ab and Thing.aB {BOTH.format('AB_ASC')}"):
        domain(decider(), views=[named("Thing", ab=str, aB=int)])
    made = domain(decider(), views=[named("Thing", ab=str, aB=bool, AB=list[str], a_c=str)])
    assert "AB_ASC" in print_schema(schema_of(made))


def test_headwater_and_strawberry_give_a_field_the_same_name() -> None:
    """Strawberry names the fields of the schema. Headwater names them in paths and messages."""
    names = ["type_", "_x", "a__b", "URL", "a_1", "x2_y", "thingId_", "_as_of", "Up_down", "a_B_CD"]

    Do = types.new_class(  # noqa: N806 - a class
        "Do",
        (Command,),
        {},
        lambda body: body.update(
            {"__annotations__": {"thing_id": UUID, **dict.fromkeys(names, str)}, "__module__": __name__}
        ),
    )
    made = schema_of(domain(*deciders_of(Do)))._schema.type_map["DoInput"]
    assert isinstance(made, GraphQLInputObjectType)
    assert list(made.fields) == list(map(field_name, ["thing_id", *names]))


def test_a_name_cannot_clash_with_a_generated_name() -> None:
    class Do(Command):
        thing_id: UUID

    class DoIt(Command):
        thing_id: UUID

    class Redo(Command, name="do_it"):
        thing_id: UUID

    class Version(ReadModel, key="thing_id"):
        thing_id: UUID

    class OpenFilter(ReadModel, key="thing_id", name="Event"):
        thing_id: UUID

    class Node(ReadModel, key="thing_id", name="node"):
        thing_id: UUID

    with says(f"the refusal ...DoAccepted and the accepted type of the command ...Do {BOTH.format('DoAccepted')}"):
        domain(*deciders_of(Do, Do=[refusal("DoAccepted")]))
    with says(f"the command ...DoIt and the command ...Redo {BOTH.format('doIt')}"):
        domain(*deciders_of(DoIt, Redo))
    with says(f"OpenAccepted.version and the read model ...Version {BOTH.format('version')}"):
        domain(decider(), views=[View(Version, fold)])
    with says(f"a type of Headwater's own and the read model ...OpenFilter {BOTH.format('Event')}"):
        domain(decider(), views=[View(OpenFilter, fold)])
    with says(f"the field node of Headwater's own and the read model ...Node {BOTH.format('node')}"):
        domain(decider(), views=[View(Node, fold)])


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_read_model_cannot_have_the_name_of_a_unit_or_position_of_headwater(name: str) -> None:
    class Mine(ReadModel, key="thing_id", name=name):
        thing_id: UUID

    with says(
        f"the read model ...Mine: Headwater itself has a unit or position named {name!r}; give the read model another"
        " name"
    ):
        domain(decider(), views=[View(Mine, fold)])

    class Yours(ReadModel, key="thing_id", name=name.capitalize()):
        thing_id: UUID

    domain(decider(), views=[View(Yours, fold)])


@pytest.mark.parametrize("name", ["saga Thing", "reactor thing"])
def test_the_name_of_a_unit_of_a_saga_or_reactor_is_no_valid_read_model_name(name: str) -> None:
    class Mine(ReadModel, key="thing_id", name=name):
        thing_id: UUID

    with says(f"the read model ...Mine: {name!r} {NO_NAME}"):
        domain(decider(), views=[View(Mine, fold)])


def test_the_reserved_names_are_those_of_the_units_and_positions() -> None:
    assert {EPOCH, LOG, LEASES, SCHEDULES} == KEPT


def test_the_name_of_an_internal_command_is_not_checked_for_graphql() -> None:
    class Do(Command, name="do it", internal=True):
        thing_id: UUID

    assert domain(*deciders_of(Do, **{"do it": [refusal("RedoInput")]})).decider_of.keys() == {Do}


def test_the_reserved_types_are_those_that_headwater_adds_to_a_schema() -> None:
    class Everything(ReadModel, key="thing_id"):
        thing_id: UUID
        text: str
        whole: int
        real: float
        yes: bool
        amount: Decimal
        at: datetime
        day: date
        opens: time
        wait: timedelta
        raw: bytes

    domain = Domain([users, accounts, transfers, Feature(deciders=[decider()], views=[View(Everything, fold)])])
    ours = set(re.findall(r"(?m)^(?:type|input|enum|interface|union|scalar) (\w+)", print_schema(schema_of(domain))))
    theirs = tuple(
        [command.__declared__.name for command in domain.decider_of]
        + [
            refused.__name__
            for command in domain.decider_of
            for refused in (*domain.decider_of[command].decide_of[command].refusals, *EVERY_COMMAND_REFUSES)
        ]
        + [InvalidField.__name__]
        + [view.name for view in domain.views]
        + [each.enum.__name__ for view in domain.views for each in view.fields if each.enum is not None]
    )
    built_in = {"Boolean", "Float", "ID", "Int", "String"}  # GraphQL's own scalars are not printed
    assert {name for name in ours if not name.startswith(theirs)} | built_in == TYPES | SAGA_TYPES


# ---------------------------------------------------------------------------------------------------------- read models


def test_a_fold_must_be_annotated_with_its_events() -> None:
    def bare(row, event):  # type: ignore[no-untyped-def]
        return row

    def naked(row: Thing | None, event: Opened) -> Thing | None:
        return row

    def unknown(row: Thing | None, event: "Recorded[Nowhere]") -> Thing | None:  # type: ignore[name-defined]  # noqa: F821
        return row

    for function in (bare, naked):
        with says(
            f"...{function.__name__}: its second parameter must be annotated Recorded[...] with the events it folds"
        ):
            View(Thing, cast(Any, function))
    with says("...unknown: an annotation cannot be resolved: name 'Nowhere' is not defined"):
        View(Thing, unknown)


def test_a_view_cannot_fold_an_event_of_no_decider() -> None:
    def fold_closed(row: Thing | None, event: Recorded[Opened | Closed]) -> Thing | None:
        return row

    with says("Thing folds Closed, which no decider's evolve takes"):
        domain(decider(), views=[View(Thing, fold_closed)])


def test_the_key_of_a_read_model_must_be_a_field_that_can_be_one() -> None:
    class Keyless(ReadModel, key="other_id"):
        thing_id: UUID

    class Named(ReadModel, key="names"):
        names: list[str]

    class Maybe(ReadModel, key="thing_id"):
        thing_id: UUID | None

    with says(
        "Keyless: its key `other_id` must be one of its fields, of type UUID, str, int, date or an enum, without None"
    ):
        View(Keyless, fold)
    with says(
        "Named: its key `names` must be one of its fields, of type UUID, str, int, date or an enum, without None"
    ):
        View(Named, fold)
    with says(
        "Maybe: its key `thing_id` must be one of its fields, of type UUID, str, int, date or an enum, without None"
    ):
        View(Maybe, fold)


def test_a_folded_event_must_have_the_key_unless_the_view_has_a_route() -> None:
    class Owner(ReadModel, key="owner_id"):
        owner_id: UUID

    class Owned(Event):
        owner_id: str

    def fold_owned(row: Owner | None, event: Recorded[Owned]) -> Owner | None:
        return row

    with says("Opened has no field `owner_id: UUID` to find its Owner row by; give the View a route"):
        domain(decider(), views=[View(Owner, fold)])
    with says("Owned has no field `owner_id: UUID` to find its Owner row by; give the View a route"):
        View(Owner, fold_owned)
    assert View(Owner, fold, route=lambda event: event.data.thing_id).events == (Opened,)


@pytest.mark.parametrize("name", ["id", "position"])
def test_a_read_model_cannot_have_a_field_that_every_row_has(name: str) -> None:
    namespace = {"__annotations__": {"thing_id": UUID, name: int}, "__module__": __name__}
    model: type[ReadModel] = types.new_class(
        "Odd", (ReadModel,), {"key": "thing_id"}, lambda body: body.update(namespace)
    )
    with says(f"Odd.{name}: Headwater gives each row a `{name}` of its own; rename it"):
        View(model, fold)


def test_an_index_must_name_fields() -> None:
    class Odd(ReadModel, key="thing_id", indexes=["thing_id", ("thing_id", "colour")]):
        thing_id: UUID

    with says("Odd: it has no field `colour`, which `indexes` names"):
        View(Odd, fold)


def named(name: str, key: str = "thing_id", /, **columns: Any) -> View[Any]:
    """Return a view of a read model with this name, key and columns."""
    namespace = {"__annotations__": {key: UUID, **columns}, "__module__": __name__}
    model: type[ReadModel] = types.new_class(name, (ReadModel,), {"key": key}, lambda body: body.update(namespace))
    return View(model, fold, route=lambda event: event.data.thing_id)


def test_names_longer_than_those_of_postgresql_are_refused() -> None:
    domain(decider(), views=[named("A" + "b" * 55, **{"c" * 63: int})])
    too_long = f"A{'b' * 56}: 'a{'b' * 56}' is too long for the name of its tables, which has 56 bytes at most; "
    with says(too_long + "give it a shorter name, class ...(ReadModel, name=...)"):
        domain(decider(), views=[named("A" + "b" * 56)])
    with says(f"Thing.{'c' * 64}: the name of a column has 63 bytes at most; rename it"):
        domain(decider(), views=[named("Thing", **{"c" * 64: int})])


@pytest.mark.parametrize("name", ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"])
def test_a_read_model_cannot_have_the_name_of_a_system_column(name: str) -> None:
    with says(f"Thing.{name}: PostgreSQL gives each table a column `{name}` of its own; rename it"):
        domain(decider(), views=[named("Thing", **{name: str})])


def test_two_read_models_cannot_have_one_table() -> None:
    with says("BankAccount and Bank_Account would both be read.bank_account; rename one of them"):
        domain(decider(), views=[named("BankAccount"), named("Bank_Account")])
    taken = "a name that a table or an index of Account can have; rename it"
    for name in ("Account_1", "Account_27", "Account_2_owner", "Account_3_Other_4"):
        with says(f"{name} would be read.{name.lower()}, {taken}"):
            domain(decider(), views=[named(name), named("Account")])
    domain(decider(), views=[named("Account"), named("Account2"), named("Account_x"), named("Other_1")])


def test_a_link_must_name_a_field_of_the_type_of_a_key_and_a_read_model_of_the_app() -> None:
    class Linked(ReadModel, key="thing_id"):
        thing_id: UUID
        name: str
        other = Link(Thing, by="other_id")

    class LinkedByName(ReadModel, key="thing_id"):
        thing_id: UUID
        name: str
        other = Link(Thing, by="name")

    class Right(ReadModel, key="thing_id"):
        thing_id: UUID
        other = Link(Thing, by="thing_id")

    with says("Linked.other: `by=other_id` must name a field of Linked"):
        View(Linked, fold)
    with says("LinkedByName.other: `by='name'` must name fields of the types of Thing's key, thing_id: UUID"):
        domain(decider(), views=[View(LinkedByName, fold), View(Thing, fold)])
    with says("Right.other links to Thing, which no feature contains"):
        domain(decider(), views=[View(Right, fold)])
    assert domain(decider(), views=[View(Right, fold), View(Thing, fold)]).view_of.keys() == {Right, Thing}
