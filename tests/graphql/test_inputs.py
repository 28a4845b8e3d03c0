"""Errors about an input name its entries by their GraphQL names."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import strawberry

from headwater.errors import BadUserInput
from headwater.graphql.events import EventFilter
from headwater.graphql.inputs import given_values
from headwater.graphql.sagas import SagaFilter


def filter_with(kind: type[Any], entry: str) -> object:
    """A filter in which one entry is null and the others are left out."""
    names = [field.python_name for field in kind.__strawberry_definition__.fields]
    return kind(**{name: None if name == entry else strawberry.UNSET for name in names})


NAMES = [
    (EventFilter, "stream_id", "streamId"),
    (EventFilter, "correlation_id", "correlationId"),
    (EventFilter, "since", "from"),
    (EventFilter, "until", "to"),
    (EventFilter, "types", "types"),
    (SagaFilter, "older_than", "olderThan"),
    (SagaFilter, "newer_than", "newerThan"),
    (SagaFilter, "saga", "saga"),
]


@pytest.mark.parametrize(("kind", "entry", "name"), NAMES)
def test_a_null_is_refused_by_the_name_that_the_client_used(kind: type[Any], entry: str, name: str) -> None:
    with pytest.raises(BadUserInput, match=f"^filter: {name} is null; leave it out.$"):
        given_values(filter_with(kind, entry), "filter")


def test_entries_that_were_left_out_are_not_among_the_values() -> None:
    stream = UUID(int=1)
    assert given_values(EventFilter(stream_id=stream, category="Account"), "filter") == {
        "stream_id": stream,
        "category": "Account",
    }
