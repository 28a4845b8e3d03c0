"""Upcasters: they turn events of older shapes into the current one while they are read. The log is never rewritten.

An upcaster is one step, from a stored type and version to the next, on a dict of JSON values. Steps follow one another
until the event has the shape of a current class. A step knows names and versions but no class, so that it stays right
when the classes change.

    Upcaster("MoneyWithdrawn", from_version=1, defaults={"balance": None})             # a new field
    Upcaster("UserRegistered", from_version=1, to=split_the_name)                      # another shape
    Upcaster("Withdrawn", from_version=3, to_type="MoneyWithdrawn")                    # another name
    Upcaster("StatusChanged", from_version=1, to_type=["Frozen", "Closed"], to=which)  # one of several, by its data

One stored event is read as one event: an upcaster may choose its type, but can neither drop it nor make two of it,
since each event has one position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from headwater.domain.class_keywords import is_list
from headwater.domain.fields import require_sync
from headwater.domain.messages import MAX_EVENT_VERSION
from headwater.domain.stored_names import require_stored_name
from headwater.domain.value_rules import shortened
from headwater.errors import DefinitionError, LogError

Kind: TypeAlias = tuple[str, int]
"""The stored name of an event type, and the version of its shape."""

Fields: TypeAlias = dict[str, Any]
"""The fields of an event as JSON values: decimals, times and ids are text."""


@dataclass(frozen=True)
class Upcaster:
    """One step from a stored type and version to the next.

        Upcaster("MoneyWithdrawn", from_version=1, defaults={"balance": None})

    type, from_version: the stored ones. to: from the stored fields to the newer ones; by default they stay. If there
    are several `to_type`s, it returns `(type, fields)` with the one that the event becomes. defaults: JSON values of
    fields that are missing after `to`. to_type: the new name, or several names; by default the name stays and the
    version increases by one. to_version: the version of the new name.

    Raises:
        DefinitionError: a version is out of range, or the arguments contradict each other.
    """

    type: str
    from_version: int
    to: Callable[[Fields], Fields] | Callable[[Fields], tuple[str, Fields]] | None = None
    defaults: Mapping[str, object] = field(default_factory=dict)
    to_type: str | Sequence[str] | None = None
    to_version: int = 1

    def __post_init__(self) -> None:
        require_sync(self.to)
        renamed = self.to_type if is_list(self.to_type) else [self.type if self.to_type is None else self.to_type]
        for name in (self.type, *renamed):
            require_stored_name("The name of an event's type", name)
        for version in (self.from_version, self.to_version):
            if not 1 <= version <= MAX_EVENT_VERSION:
                raise DefinitionError(f"{self}: a version is from 1 to {MAX_EVENT_VERSION}, not {version}")
        if self.to_type is None and self.to_version != 1:
            raise DefinitionError(
                f"{self}: `to_version` needs a new name, `to_type`; without one the version increases by 1"
            )
        if not self.targets:
            raise DefinitionError(f"{self}: `to_type=[]` is empty; name the types that the event becomes")
        if self.splits and self.to is None:
            raise DefinitionError(f"{self}: with several types it needs a function `to`, which returns (type, dict)")

    @property
    def kind(self) -> Kind:
        """The stored type and version that it reads."""
        return self.type, self.from_version

    @property
    def splits(self) -> bool:
        """True if the event becomes one of several types, chosen by its data."""
        return self.to_type is not None and not isinstance(self.to_type, str)

    @property
    def targets(self) -> tuple[Kind, ...]:
        """The types and versions that an event can become."""
        if self.to_type is None:
            return ((self.type, self.from_version + 1),)
        names = (self.to_type,) if isinstance(self.to_type, str) else tuple(self.to_type)
        return tuple((name, self.to_version) for name in names)

    def step(self, stored: Fields) -> tuple[Kind, Fields]:
        """Return an event's next kind and fields.

        Raises:
            LogError: the function raised, or returned a value of another type.
        """
        given = stored if self.to is None else self._call(self.to, stored)
        kind = self.targets[0]
        if self.splits:
            if not (isinstance(given, tuple) and len(given) == 2 and (given[0], self.to_version) in self.targets):
                names = ", ".join(name for name, _ in self.targets)
                raise LogError(f"{self} returned {shortened(given)}, not (type, dict) with one of its types: {names}")
            kind, given = (given[0], self.to_version), given[1]
        if not isinstance(given, dict):
            raise LogError(f"{self} returned {shortened(given)}, not a dict")
        return kind, {**self._defaults(), **given} if self.defaults else given

    def _defaults(self) -> Fields:
        """Return copies of the defaults, so that a later step that changes one does not change the next event."""
        return {name: deepcopy(each) if isinstance(each, list | dict) else each for name, each in self.defaults.items()}

    def _call(self, function: Callable[[Fields], object], stored: Fields) -> object:
        try:
            return function(stored)
        except Exception as error:
            raise LogError(f"{self} raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return f"The upcaster from {self.type} version {self.from_version}"


class Chains:
    """All steps of an app, chained.

    current: the version of each type's class. ends: for each kind with a step, the current types that its events may
    become.

    Raises:
        DefinitionError: a step is never used, there are two for one kind, or a chain has a gap or a circle.
    """

    def __init__(self, upcasters: Iterable[Upcaster], current: Mapping[str, int]) -> None:
        self._current = current
        self._steps: dict[Kind, Upcaster] = {}
        for upcaster in upcasters:
            self._add(upcaster)
        self.ends: dict[Kind, frozenset[str]] = {kind: self._follow(kind, ()) for kind in self._steps}

    def _add(self, upcaster: Upcaster) -> None:
        version = self._current.get(upcaster.type)
        if version is not None and upcaster.from_version >= version:
            raise DefinitionError(
                f"{upcaster} is never used, since the class that is stored as {upcaster.type!r} has version={version}; "
                f"raise it to {upcaster.from_version + 1}, or remove the upcaster"
            )
        if self._steps.setdefault(upcaster.kind, upcaster) is not upcaster:
            raise DefinitionError(f"{upcaster} is there twice; remove one of them")

    def _follow(self, kind: Kind, path: tuple[Kind, ...]) -> frozenset[str]:
        """Return the current types that events of a kind may become."""
        name, version = kind
        if kind in path:
            circle = " -> ".join(f"{name} {version}" for name, version in (*path[path.index(kind) :], kind))
            raise DefinitionError(
                f"The upcasters go in a circle: {circle}; none of these becomes an event of a current class"
            )
        if self._current.get(name) == version:
            return frozenset([name])
        step = self._steps.get(kind)
        if step is None:
            raise DefinitionError(self._nowhere(name, version, self._steps[path[-1]]))
        path = (*path, kind)
        return frozenset(end for target in step.targets for end in self._follow(target, path))

    def _nowhere(self, name: str, version: int, last: Upcaster) -> str:
        current = self._current.get(name)
        leads = f"{last} leads to {name} version {version}"
        if current is None:
            return f"{leads}, which no decider's evolve takes and no upcaster reads"
        if version > current:
            return f"{leads}, but the class that is stored so has version={current}; raise it, or remove the upcaster"
        return f"{leads}, but its class has version={current}; add the upcaster from version {version}"

    def upcast(self, kind: Kind, stored: Fields) -> tuple[str, Fields]:
        """Return the current type and the fields of a stored event.

        Raises:
            LogError: a step failed.
        """
        step: Upcaster | None = self._steps[kind]
        while step is not None:
            kind, stored = step.step(stored)
            step = None if self._current.get(kind[0]) == kind[1] else self._steps[kind]
        return kind[0], stored
