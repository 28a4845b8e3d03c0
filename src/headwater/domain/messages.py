"""Commands, events and refusals: plain typed data.

`Command` and `Event` are msgspec structs, frozen and keyword-only. Class keywords carry what belongs to the class:
`class MoneyWithdrawn(Event, version=2)`. An event is stored under its class name, or under `name=`; the module is not
stored, so that code can move.
"""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime
from decimal import Decimal
from inspect import cleandoc
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar
from uuid import UUID

import msgspec
from typing_extensions import dataclass_transform

from headwater.domain.class_keywords import KeywordStruct, is_whole, name_given, require_flag
from headwater.domain.value import Value
from headwater.errors import DefinitionError

MAX_EVENT_VERSION = 32_767
"""The log stores the version in two bytes."""

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

E_co = TypeVar("E_co", bound="Event", covariant=True)


def constant_case(name: str) -> str:
    """Return `INSUFFICIENT_FUNDS` for `InsufficientFunds`."""
    return _WORD.sub("_", name).upper()


def sentence_of(cls: type) -> str:
    """Return the first paragraph of the class's own docstring on one line; empty if it has none."""
    doc = cls.__dict__.get("__doc__")
    return " ".join(cleandoc(doc).split("\n\n")[0].split()) if doc else ""


@dataclasses.dataclass(frozen=True)
class Exact:
    """The bounds of a Decimal field: `Annotated[Decimal, Exact(above=0, places=2)]`.

    digits: the most digits, written out without an exponent. places: the most decimal places. above: an exclusive lower
    bound. at_least, at_most: inclusive bounds.

    A row's column with `places` is `numeric(p, places)`: its values are shown with exactly these places, and a value
    with more of them is a failure of the fold.
    """

    digits: int = 28
    places: int | None = None
    above: Decimal | int | None = None
    at_least: Decimal | int | None = None
    at_most: Decimal | int | None = None

    def complaint(self, value: Decimal) -> str | None:
        """Return a sentence about the bound that the value breaks; None if it keeps all."""
        if not value.is_finite():
            return "Expected a finite decimal"
        _, digits, exponent = value.as_tuple()
        assert isinstance(exponent, int)  # finite
        whole = max(len(digits) + exponent, 0)
        if whole + max(-exponent, 0) > self.digits:
            return f"Expected at most {self.digits} digits"
        if self.places is not None and -exponent > self.places:
            return f"Expected at most {self.places} decimal places"
        if self.above is not None and not value > self.above:
            return f"Expected more than {self.above}"
        if self.at_least is not None and value < self.at_least:
            return f"Expected at least {self.at_least}"
        if self.at_most is not None and value > self.at_most:
            return f"Expected at most {self.at_most}"
        return None


_REFUSAL_HAS = frozenset({"code", "facts", "message"})
"""The attributes of every refusal, which a field would hide."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Refusal(KeywordStruct):
    """A no of the business rules, as a value: a decide function returns it, and the client receives it as a result.

        class InsufficientFunds(Refusal):
            balance: Decimal

    The subclass's docstring is the message that clients read; its fields are the facts. The GraphQL type has the
    class's name, and `code` is that name in CONSTANT_CASE.

    Raises:
        DefinitionError: a field has the name of something that every refusal has.
    """

    code: ClassVar[str] = "REFUSED"

    if TYPE_CHECKING:

        def __init_subclass__(cls) -> None: ...

    @classmethod
    def __declare__(cls) -> None:
        for name in cls.__struct_fields__:
            if name in _REFUSAL_HAS:
                raise DefinitionError(f"{cls.__name__}.{name}: every refusal has a `{name}` of its own; rename it")
        cls.code = constant_case(cls.__name__)

    @property
    def message(self) -> str:
        """The message for clients: the first paragraph of the class's docstring, or the code if it has none."""
        return sentence_of(type(self)) or self.code

    @property
    def facts(self) -> dict[str, object]:
        """The fields by name."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


class InvalidField(Value):
    """A value of an input that breaks a rule. path: of names, indices and keys. message: a sentence about the rule.

        InvalidField(path=["lines", "2", "quantity"], message="Expected at most 50")

    The refusal `InvalidInput` lists them in `errors`.
    """

    path: list[str]
    message: str


class InvalidInput(Refusal):
    """The input breaks a rule of its type.

        return InvalidInput(path=["name"], complaint="Expected a name that can be seen")

    path: from the input to the first value that does. complaint: a sentence about the rule, which is also the message.
    others: the further values that do.
    """

    path: list[str]
    complaint: str
    others: tuple[InvalidField, ...] = ()

    @property
    def errors(self) -> tuple[InvalidField, ...]:
        """Every value that breaks a rule, the first one first."""
        return InvalidField(path=self.path, message=self.complaint), *self.others

    @property
    def message(self) -> str:
        return self.complaint


class VersionConflict(Refusal):
    """The stream has changed since the version that was expected.

        case VersionConflict(actual_version=version): ...    # read again, and decide again

    expected_version: as the client gave it. actual_version: of the last event of the stream; 0 without events.
    """

    expected_version: int
    actual_version: int


EVERY_COMMAND_REFUSES: tuple[type[Refusal], ...] = (InvalidInput, VersionConflict)
"""The refusals that every command may have, whether or not its decide function names them."""


@dataclasses.dataclass(frozen=True, slots=True)
class EventDeclaration:
    """The class keywords of an event. name: the type as stored. version: of the event's shape, from 1."""

    name: str
    version: int


@dataclasses.dataclass(frozen=True, slots=True)
class CommandDeclaration:
    """The class keywords of a command.

    name: of the mutation's types. creates: it starts a stream. internal: only the app issues it; it has no mutation.
    """

    name: str
    creates: bool
    internal: bool


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Event(KeywordStruct):
    """Something that has happened: frozen, keyword-only, compared by its fields.

        class MoneyWithdrawn(Event, version=2):
            amount: Decimal
            balance: Decimal

    Class keywords: `version` (of its shape, from 1) and `name` (as stored; the class's name by default).

    Raises:
        DefinitionError: a class keyword is unknown or has a wrong value.
    """

    __declared__: ClassVar[EventDeclaration] = EventDeclaration("Event", 1)

    if TYPE_CHECKING:

        def __init_subclass__(cls, *, name: str | None = None, version: int = 1) -> None: ...

    @classmethod
    def __declare__(cls, *, name: str | None = None, version: int = 1) -> None:
        if not is_whole(version) or not 1 <= version <= MAX_EVENT_VERSION:
            raise DefinitionError(
                f"{cls.__name__}: version={version!r} must be a whole number from 1 to {MAX_EVENT_VERSION}"
            )
        cls.__declared__ = EventDeclaration(name_given(cls, name), version)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Command(KeywordStruct):
    """A request to change something. Its docstring describes the mutation.

        class Withdraw(Command):
            \"\"\"Take money out of an account.\"\"\"
            account_id: UUID
            amount: Annotated[Decimal, Exact(above=0, places=2)]

    Class keywords: `creates` (it starts a stream: its key may be left out and is then made), `internal` (only the app
    issues it, for example a saga; it has no mutation) and `name`.

    Raises:
        DefinitionError: a class keyword is unknown or has a wrong value.
    """

    __declared__: ClassVar[CommandDeclaration] = CommandDeclaration("Command", creates=False, internal=False)

    if TYPE_CHECKING:

        def __init_subclass__(
            cls, *, name: str | None = None, creates: bool = False, internal: bool = False
        ) -> None: ...

    @classmethod
    def __declare__(cls, *, name: str | None = None, creates: bool = False, internal: bool = False) -> None:
        require_flag(cls, "creates", creates)
        require_flag(cls, "internal", internal)
        cls.__declared__ = CommandDeclaration(name_given(cls, name), creates=creates, internal=internal)


class Recorded(msgspec.Struct, Generic[E_co], frozen=True, gc=False):
    """An event as the log holds it.

        def fold(row: AccountView | None, event: Recorded[MoneyDeposited]) -> AccountView:
            return AccountView(account_id=event.stream_id, balance=event.data.balance, updated_at=event.recorded_at)

    data: the event. position: its place in the log, from 1. stream_id, version: its stream, and its place in it,
    from 1. recorded_at: when it was appended, in UTC. command_id: of the command that caused it. correlation_id: of the
    request that everything began with. causation_id: of the event or command that caused the command. actor: who
    issued the command, if that is known.
    """

    data: E_co
    position: int
    stream_id: UUID
    version: int
    recorded_at: datetime
    event_id: UUID
    command_id: UUID
    correlation_id: UUID
    causation_id: UUID | None = None
    actor: str | None = None
