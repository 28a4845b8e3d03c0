"""The check of a refusal before the client receives it. A refusal that does not fit its declaration is a fault of the
app's code; the client receives an error instead."""

from __future__ import annotations

from functools import cache

from headwater.domain.fields import Field, fields_of
from headwater.domain.messages import EVERY_COMMAND_REFUSES, Command, Refusal


def fault_of_refusal(refusal: Refusal, command: Command) -> str | None:
    """Return a sentence about why a refusal cannot be the answer to a command; None if it can be.

    The command must declare its class, and each fact must have a value, unless its annotation has None.
    """
    name, raised = command.__declared__.name, type(refusal)
    if not isinstance(refusal, (*command.__declared__.refuses, *EVERY_COMMAND_REFUSES)):
        return f"{name} was refused with {raised.__name__}, which it does not declare in `refuses=[...]`"
    for field in _facts_of(raised):  # type: ignore[arg-type]  # mypy takes no class for hashable
        if _is_missing(field, getattr(refusal, field.name)):
            return (
                f"{name} was refused with {raised.__name__} whose fact `{field.name}` is None, or has a None in its "
                f"list; give it a value where the refusal is raised, or annotate {raised.__name__}.{field.name} with "
                "`| None`"
            )
    return None


@cache
def _facts_of(refusal: type[Refusal]) -> tuple[Field, ...]:
    return fields_of(refusal)


def _is_missing(field: Field, value: object) -> bool:
    if value is None:
        return not field.optional
    return field.many and isinstance(value, list | tuple) and None in value
