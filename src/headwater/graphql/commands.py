"""Commands as mutations: an input type, and a union of the accepted type and the refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union
from uuid import UUID

import strawberry

from headwater.commands.dispatcher import Accepted as Appended
from headwater.domain.class_keywords import replace
from headwater.domain.feature import Domain
from headwater.domain.fields import Field, Kind, fields_of
from headwater.domain.graphql_names import camel
from headwater.domain.messages import EVERY_COMMAND_REFUSES, Command, InvalidField, InvalidInput, Refusal, sentence_of
from headwater.domain.row_key import RowKey
from headwater.domain.validation import command_from
from headwater.errors import PublicError
from headwater.graphql.bounds import has_bounds, within
from headwater.graphql.building import Annotation, Generated, Info, Omittable, new_class, resolver
from headwater.graphql.interfaces import Accepted, AnyRefusal, RowState
from headwater.graphql.rows import RowType, RowTypes, state_of
from headwater.graphql.scalars import Position
from headwater.graphql.values import ValueTypes, given_fields, shown_path
from headwater.ids import derived_in_time, new_id
from headwater.logs import HANDLED


class Mutations:
    """Makes the mutation fields of an app."""

    def __init__(self, domain: Domain, rows: RowTypes, values: ValueTypes) -> None:
        self._domain = domain
        self._values = values
        self._rows = rows
        self._refusals: dict[type[Refusal], Generated] = {}

    def fields(self) -> dict[str, object]:
        """Return a field for each command that is not internal."""
        return {
            camel(command.__declared__.name): self._field(command)
            for command in self._domain.decider_of
            if not command.__declared__.internal
        }

    def refusals(self) -> list[Generated]:
        """Return the types of all refusals, also those of internal commands: a row may hold them."""
        return [self._refusal(refused) for command in self._domain.decider_of for refused in self._refusals_of(command)]

    def _refusals_of(self, command: type[Command]) -> tuple[type[Refusal], ...]:
        return self._domain.decider_of[command].decide_of[command].own_refusals

    def _field(self, command: type[Command]) -> object:
        accepted = self._accepted(command)
        members = (
            accepted,
            *(self._refusal(refused) for refused in (*self._refusals_of(command), *EVERY_COMMAND_REFUSES)),
        )
        either: Annotation = Union.__getitem__(members)  # known at run time only
        result = Annotated[either, strawberry.union(name=f"{command.__declared__.name}Result")]
        resolve = self._resolver(command, accepted)
        return strawberry.mutation(
            resolver=resolver(
                resolve,
                result,
                input=self._input(command),
                expected_version=Omittable(int),
                command_id=Omittable(UUID),
            ),
            description=sentence_of(command),
        )

    def _resolver(self, command: type[Command], accepted: Generated) -> Callable[..., object]:
        key, fields = self._domain.decider_of[command].key, fields_of(command)
        can_make_key = self._can_make_key(command)

        async def resolve(
            root: object, info: Info, input: object, expected_version: int | None = None, command_id: UUID | None = None
        ) -> object:
            # Made here, so that an error can name it: after a lost response the client sends the command again with
            # this id. The id of a new stream is derived from it, so that a retry creates the same stream.
            command_id = command_id or new_id()
            HANDLED.set((command_id, None))  # to the end of the request, where its errors are logged
            try:
                return await answer(info, input, expected_version, command_id)
            except PublicError as error:
                error.facts = {**error.facts, "commandId": str(command_id)}
                raise

        def row_key(given: Command) -> RowKey:
            return self._domain.decider_of[command].key_fields.take(getattr(given, key))

        async def answer(info: Info, input: object, expected_version: int | None, command_id: UUID) -> object:
            values = given_fields(fields, input)
            if can_make_key and values.get(key) is None:
                values[key] = derived_in_time(command_id, command.__declared__.name)
            given = command_from(command, values)
            if isinstance(given, InvalidInput):
                return self._refused(given, fields, values)
            done = await info.context.serving.dispatcher.execute(
                given, command_id=command_id, expected_version=expected_version
            )
            if isinstance(done, Refusal):
                return self._refused(done, fields, values)
            return _accept(accepted, done, row_key(given))

        return resolve

    def _can_make_key(self, command: type[Command]) -> bool:
        """True if a client may leave the key out: the command creates a stream, and its key is a UUID."""
        return command.__declared__.creates and self._domain.decider_of[command].key_fields.is_uuid

    def _input(self, command: type[Command]) -> Generated:
        cls = new_class(f"{command.__declared__.name}Input")
        key = self._domain.decider_of[command].key
        for each in fields_of(command):
            made = self._can_make_key(command) and each.name == key
            self._values.add_input(cls, each, needed=each.required and not made)
        return strawberry.input(cls)

    def _accepted(self, command: type[Command]) -> Generated:
        """Return `DepositAccepted`: the command's place in the log, and the read models with the stream's key."""
        cls = new_class(f"{command.__declared__.name}Accepted", Accepted)
        shown = [rows for rows in self._rows.all() if rows.view.key.is_of(self._domain.decider_of[command].key_fields)]
        for rows in shown:
            field = strawberry.field(
                resolver=_row_after(rows), description="Read at the command's position: it shows what you wrote."
            )
            setattr(cls, rows.name, field)
        if shown:
            cls.row_state = strawberry.field(
                resolver=_state_after(shown),
                description="PARKED if a row beside it, which may be null, does not show what you wrote.",
            )
        return strawberry.type(cls)

    def _refusal(self, refused: type[Refusal]) -> Generated:
        """Return the type of a refusal: its code, message and facts. Commands share it."""
        if refused not in self._refusals:
            cls = new_class(refused.__name__, AnyRefusal)
            for each in fields_of(refused):
                if each.name not in _HIDDEN.get(refused, ()):
                    self._values.add_output(cls, each)
            if refused is InvalidInput:
                self._values.add_output(cls, _ERRORS)
            self._refusals[refused] = strawberry.type(cls, description=sentence_of(refused))
        return self._refusals[refused]

    def _refused(self, refused: Refusal, fields: Sequence[Field], values: Mapping[str, object]) -> object:
        cls = self._refusals[type(refused)]
        for each in fields_of(type(refused)):
            if has_bounds(each):
                within(type(refused).__name__, each, refused.facts[each.name])
        facts: Mapping[str, object] = {
            name: value for name, value in refused.facts.items() if name not in _HIDDEN.get(type(refused), ())
        }
        if isinstance(refused, InvalidInput):
            errors = [replace(each, path=shown_path(fields, each.path, values)) for each in refused.errors]
            facts = {"path": errors[0].path, "errors": errors}
        return cls(code=refused.code, message=refused.message, **facts)


_HIDDEN: dict[type[Refusal], tuple[str, ...]] = {InvalidInput: ("complaint", "others")}
"""Facts without a field of their own: the complaint is the message, and the others are among the errors."""

_ERRORS = Field(
    "errors",
    Kind.VALUE,
    optional=False,
    many=True,
    required=True,
    values=(InvalidField,),
    description="Every value of the input that breaks a rule. The first one is also `path` and `message`.",
)


def _accept(cls: Generated, done: Appended, key: RowKey) -> object:
    """Return the accepted type's instance. key: of the rows that are read with it."""
    shown = cls(
        command_id=done.command_id,
        stream_id=done.stream_id,
        version=done.version,
        position=Position(done.epoch.place(done.position)),
    )
    shown.__row_key__ = key  # GraphQL reserves names with two leading underscores, so no field can clash
    return shown


def _state_after(shown: Sequence[RowType]) -> Callable[..., object]:
    async def resolve(root: Any, info: Info) -> RowState | None:
        states = []
        for rows in shown:
            await info.context.after(rows.model, root.__row_key__, root.position.position)
            states.append(await state_of(info, rows.model, root.__row_key__))
        return RowState.PARKED if RowState.PARKED in states else RowState.CURRENT

    return resolver(resolve, RowState | None)


def _row_after(rows: RowType) -> Callable[..., object]:
    async def resolve(root: Any, info: Info) -> object | None:
        position = root.position.position
        row, epoch = await info.context.after(rows.model, root.__row_key__, position), info.context.epoch
        return rows.wrap(row, epoch, position)

    return resolver(resolve, rows.object | None)
