"""Messages and their JSON, class keywords, refusals, and ids that sort by time."""

from __future__ import annotations

import enum
import json
import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import PurePath
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from headwater import Command, Event, ReadModel, Refusal
from headwater.domain.messages import CommandDeclaration, InvalidInput, VersionConflict, constant_case
from headwater.domain.serialization import Codec, encode
from headwater.errors import DefinitionError, LogError, UnreadableEvent
from headwater.ids import derived_id, new_id

A = UUID(int=1)


class Colour(enum.Enum):
    RED = "RED"


class Everything(Event, name="all", version=3):
    key: UUID
    text: str
    number: int
    real: float
    yes: bool
    amount: Decimal
    at: datetime
    day: date
    colour: Colour
    amounts: list[Decimal]
    note: str | None = None


class Simple(Event):
    text: str = ""


EVERYTHING = Everything(
    key=A,
    text='"é\u2028\n\\🌊',
    number=2**63 - 1,
    real=0.1,
    yes=True,
    amount=Decimal("0.10"),
    at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    day=date(2026, 1, 2),
    colour=Colour.RED,
    amounts=[Decimal("1E+3"), Decimal("-0.00")],
)


# ---------------------------------------------------------------------------------------------------------------- codec


def test_an_event_is_stored_as_json_with_exact_decimals() -> None:
    assert json.loads(encode(EVERYTHING)) == {
        "key": "00000000-0000-0000-0000-000000000001",
        "text": '"é\u2028\n\\🌊',
        "number": 2**63 - 1,
        "real": 0.1,
        "yes": True,
        "amount": "0.10",
        "at": "2026-01-02T03:04:05.678901Z",
        "day": "2026-01-02",
        "colour": "RED",
        "amounts": ["1E+3", "-0.00"],
        "note": None,
    }


def test_a_decoded_event_equals_the_encoded_one() -> None:
    assert Codec([Everything]).decode("all", 3, encode(EVERYTHING)) == EVERYTHING


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value="-1e131071", max_value="1e131071").filter(
        lambda number: number.adjusted() > -16_300
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
)
def test_decimals_and_texts_are_decoded_without_loss(amount: Decimal, text: str) -> None:
    class One(Event):
        amount: Decimal
        text: str

    back = Codec([One]).decode("One", 1, encode(One(amount=amount, text=text)))
    assert isinstance(back, One)
    assert (back.amount.as_tuple(), back.text) == (amount.as_tuple(), text)


def test_a_time_of_another_zone_is_decoded_as_the_same_moment() -> None:
    moment = datetime(2026, 1, 2, 5, tzinfo=timezone(timedelta(hours=2)))

    class At(Event):
        at: datetime

    back = Codec([At]).decode("At", 1, encode(At(at=moment)))
    assert isinstance(back, At)
    assert back.at == moment


def test_an_event_is_read_by_name_and_version_whatever_its_module() -> None:
    class Moved(Event, name="all", version=3):
        text: str

    assert (Everything.__declared__.name, Everything.__declared__.version) == ("all", 3)
    assert (Simple.__declared__.name, Simple.__declared__.version) == ("Simple", 1)
    assert Codec([Moved]).decode("all", 3, encode(EVERYTHING)) == Moved(text=EVERYTHING.text)


@pytest.mark.parametrize(
    "name, version, data, sentence",
    [
        ("None", 1, "{}", "The log holds events of type 'None', which no class of this app reads"),
        ("all", 2, "{}", "The log holds all of version 2; this app reads version 3"),
        ("all", 3, "{}", "A stored all of version 3 does not fit its class: Object missing required field `key`"),
        (
            "Simple",
            1,
            '{"text":5}',
            "A stored Simple of version 1 does not fit its class: Expected `str`, got `int` - at",
        ),
        ("Simple", 1, "{", "A stored Simple of version 1 does not fit its class: Input data was truncated"),
    ],
)
def test_an_event_that_cannot_be_decoded_is_a_log_error(name: str, version: int, data: str, sentence: str) -> None:
    with pytest.raises(LogError) as caught:
        Codec([Everything, Simple]).decode(name, version, data)
    assert str(caught.value).startswith(sentence)


class Zoned(Event):
    zone: str

    def __post_init__(self) -> None:
        ZoneInfo(self.zone)


@pytest.mark.parametrize("zone", ["Europe", "Nowhere"])
def test_an_error_of_an_events_own_post_init_is_a_log_error(zone: str) -> None:
    """The error of the first zone is an OSError, which must not be taken for an unreachable database."""
    with pytest.raises(LogError, match=r"^A stored Zoned of version 1 cannot be read: \w+Error: "):
        Codec([Zoned]).decode("Zoned", 1, f'{{"zone":"{zone}"}}')


class Odd(Event):
    real: float = 0.0
    maybe: float | None = None
    small: Annotated[int, Meta(le=100)] = 0
    text: str = ""
    amount: Decimal = Decimal()
    reals: list[float] = msgspec.field(default_factory=list)
    loose: dict[str, Any] = msgspec.field(default_factory=dict)


@pytest.mark.parametrize(
    "event, sentence",
    [
        (Odd(real=1e308 * 10), "Expected `float`, got `null` - at `$.real`"),
        (Odd(reals=[0.0, float("nan")]), "Expected `float`, got `null` - at `$.reals[1]`"),
        (Odd(small=101), "Expected `int` <= 100 - at `$.small`"),
        (Odd(text=None), "Expected `str`, got `null` - at `$.text`"),  # type: ignore[arg-type]  # the mistake
        (Odd(text="\ud800"), "'utf-8' codec can't encode character"),
        (Odd(amount=0.1), "its field amount would be read back as Decimal('0.1'), not as 0.1"),  # type: ignore[arg-type]  # the mistake
        (Odd(loose={"a": {1: 2}}), "its field loose would be read back as {'a': {'1': 2}}, not as {'a': {1: 2}}"),
        (Odd(loose={"a": object()}), "Encoding objects of type object is unsupported"),
    ],
    ids=["infinity", "nan", "bound", "none", "surrogate", "float", "key", "object"],
)
def test_an_event_that_could_not_be_read_back_is_not_encoded(event: Event, sentence: str) -> None:
    with pytest.raises(UnreadableEvent) as caught:
        encode(event)
    assert str(caught.value).startswith(f"Odd cannot be written, since it could not be read back as it is: {sentence}")


def test_a_value_that_is_read_back_as_another_type_with_equal_content_is_encoded() -> None:
    assert json.loads(encode(Odd(reals=(1.0,))))["reals"] == [1.0]  # type: ignore[arg-type]  # a tuple, as may be


def test_two_events_cannot_have_one_stored_name() -> None:
    class Other(Event, name="all"):
        pass

    with pytest.raises(DefinitionError, match=r"Everything and .*Other are both stored as 'all'; give one of them"):
        Codec([Everything, Other])
    Codec([Everything, Everything])


def test_an_event_must_have_fields_that_json_can_carry() -> None:
    class Odd(Event):
        value: complex | bytes | list[int] | tuple[int]

    class Foreign(Event):
        values: list[PurePath]

    with pytest.raises(DefinitionError, match=r"^Odd\.value cannot be read from JSON: Type unions may not contain"):
        Codec([Odd])
    with pytest.raises(DefinitionError, match=r"^Foreign\.values: JSON has no form for pathlib\.PurePath; make it "):
        Codec([Foreign])


# -------------------------------------------------------------------------------------------------------------- classes


def test_messages_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        EVERYTHING.text = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Simple("text")  # type: ignore[call-arg]


def test_a_subclass_does_not_inherit_name_and_version() -> None:
    class Special(Everything):
        pass

    assert (Special.__declared__.name, Special.__declared__.version) == ("Special", 1)


def test_class_keywords_of_a_command_are_kept_in_its_declaration() -> None:
    class Do(Command, creates=True, internal=True, name="Act"):
        """Do something."""

    class Plain(Command):
        pass

    assert Do.__declared__ == CommandDeclaration("Act", creates=True, internal=True)
    assert Plain.__declared__ == CommandDeclaration("Plain", creates=False, internal=False)


@pytest.mark.parametrize(
    "root, keywords, complaint",
    [
        (Event, {"colour": "red"}, "the class keyword `colour` is unknown; the known ones are name, version"),
        (Event, {"frozen": False}, "the class keyword `frozen` is unknown; the known ones are name, version"),
        (Event, {"name": 3}, "its name has 1 to 200 characters that can be printed on one line, not 3"),
        (Event, {"version": "2"}, "version='2' must be a whole number from 1 to 32767"),
        (Event, {"version": 0}, "version=0 must be a whole number from 1 to 32767"),
        (Event, {"version": 32_768}, "version=32768 must be a whole number from 1 to 32767"),
        (Command, {"version": 2}, "the class keyword `version` is unknown; the known ones are name, creates, internal"),
        (Refusal, {"code": "NO"}, "the class keyword `code` is unknown; the known ones are "),
        (Command, {"creates": "yes"}, "creates='yes' must be True or False"),
        (Command, {"internal": None}, "internal=None must be True or False"),
        (ReadModel, {}, r'its key is missing; name the field .*: class Odd\(ReadModel, key="..."\)'),
        (
            ReadModel,
            {"key": "a", "indexs": ["a"]},
            r"the class keyword `indexs` is unknown; did you mean `indexes`\?",
        ),
        (ReadModel, {"key": "a", "version": 0}, "version=0 must be a whole number, 1 or more"),
        (
            ReadModel,
            {"key": "a", "indexes": "a"},
            "indexes='a' must be a list of names of fields, or of tuples of them",
        ),
        (ReadModel, {"key": "a", "indexes": [("a", 1)]}, r"indexes=\[\('a', 1\)\] must be a list of names of fields"),
    ],
)
def test_a_wrong_class_keyword_is_a_definition_error(root: Any, keywords: dict[str, object], complaint: str) -> None:
    with pytest.raises(DefinitionError, match=f"^Odd: {complaint}"):
        type(root)("Odd", (root,), {"__annotations__": {"a": UUID}, "__module__": __name__}, **keywords)


# ------------------------------------------------------------------------------------------------------------- refusals


class SeatTaken(Refusal):
    """Another guest
    has the seat.

    This paragraph is not part of the message.
    """

    row: int
    seat: str = "a"


class HTTPRefused(Refusal):
    pass


def test_a_refusal_is_data() -> None:
    refusal = SeatTaken(row=3)
    assert refusal.code == "SEAT_TAKEN"
    assert refusal.message == "Another guest has the seat."
    assert refusal.facts == {"row": 3, "seat": "a"}
    assert repr(refusal) == "SeatTaken(row=3, seat='a')"


def test_the_message_of_a_refusal_without_a_docstring_is_its_code() -> None:
    assert HTTPRefused().message == "HTTP_REFUSED"
    assert HTTPRefused().facts == {}


def test_refusals_are_values() -> None:
    assert SeatTaken(row=3) == SeatTaken(row=3)
    assert SeatTaken(row=3) != SeatTaken(row=3, seat="b")
    with pytest.raises(AttributeError, match="immutable"):
        SeatTaken(row=3).row = 4  # type: ignore[misc]


def test_the_refusals_of_every_command_have_codes_and_facts() -> None:
    invalid = InvalidInput(path=["email"], complaint="Expected something else")
    assert (invalid.code, invalid.message) == ("INVALID_INPUT", "Expected something else")
    conflict = VersionConflict(expected_version=1, actual_version=2)
    assert (conflict.code, conflict.facts) == ("VERSION_CONFLICT", {"expected_version": 1, "actual_version": 2})


@pytest.mark.parametrize(
    "name, code",
    [
        ("InsufficientFunds", "INSUFFICIENT_FUNDS"),
        ("Full", "FULL"),
        ("HTTPError", "HTTP_ERROR"),
        ("Area51Closed", "AREA51_CLOSED"),
        ("NotA", "NOT_A"),
    ],
)
def test_a_code_is_the_name_in_constant_case(name: str, code: str) -> None:
    assert constant_case(name) == code


# ------------------------------------------------------------------------------------------------------------------ ids


def test_new_ids_have_version_7_and_differ() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1000
    assert {(each.version, each.variant) for each in ids} == {(7, "specified in RFC 4122")}
    assert all(before <= each.int >> 80 <= after for each in ids)


def test_new_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 5_000_000, 1_000_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    ids = [new_id() for _ in range(5)]
    assert ids == sorted(ids)
    assert [each.int >> 80 for each in ids] == [0, 1, 2, 3, 4]


def test_a_derived_id_depends_on_its_arguments_only() -> None:
    assert derived_id(A, "account_id") == derived_id(A, "account_id") == UUID("fe1f8014-94d0-5fd9-aade-4a4759768fb3")
    assert len({derived_id(A, "x"), derived_id(A, "y"), derived_id(UUID(int=2), "x")}) == 3
