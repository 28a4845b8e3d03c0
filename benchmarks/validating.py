"""Milliseconds to parse and validate one document: the most expensive kinds within the limits, and an ordinary one.

Both run on the event loop, so this is how long one document can hold up all other requests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from bank.main import app
from benchmarks.ground import Figure, median
from headwater.graphql.cost import CostLimits, cost_guard
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.postgres.embedded import EmbeddedPostgres

ROUNDS = 5


def numbered(text: str, count: int) -> str:
    """Return `text` so many times, with its number in place of each `#`."""
    return " ".join(text.replace("#", str(number)) for number in range(count))


def of_nodes(selections: str) -> str:
    return f"{{ accounts(first: 1) {{ nodes {{ {selections} }} }} }}"


ORDINARY = """
query Accounts($first: Int!, $after: String) {
  accounts(filter: { currency: { eq: "EUR" } }, orderBy: [BALANCE_DESC], first: $first, after: $after) {
    nodes { accountId balance currency owner { userId name } }
    pageInfo { hasNextPage endCursor }
  }
}
"""

# Each has almost as many tokens, selections or merged fields as the limits allow.
HOSTILE = {
    "aliases below one field": f"{{ accounts(first: 1) {{ {numbered('nodes { a#: currency }', 650)} }} }}",
    "aliases": of_nodes(numbered("a#: id", 1_600)),
    "inline fragments": of_nodes("... { id } " * 1_200),
    "fragments": of_nodes(numbered("...f#", 480)) + numbered("fragment f# on Account { id }", 480),
    "directives": of_nodes("id @include(if: true) " * 620),
    "variables": f"query ($v: Boolean!) {of_nodes('id @include(if: $v) ' * 540)}",
    "variables in a list": "query ($v: Decimal) { accounts(first: 1, filter: { and: ["
    + "{ balance: { eq: $v } } " * 450
    + "] }) { nodes { id } } }",
    "inline fragments with a variable": f"query ($v: Boolean!) {of_nodes('... @skip(if: $v) { id } ' * 380)}",
    "conflicts": f"{{ accounts(first: 1) {{ {'nodes { a: id } nodes { a: currency } ' * 400} }} }}",
    "unknown fragments": of_nodes(numbered("...f#", 2_400)),
    "values": f"{{ accounts(first: 1, filter: {{ and: [{'{ balance: { eq: 1 } } ' * 540}] }}) {{ nodes {{ id }} }} }}",
    "a fragment of many operations": f"{numbered('query q# { ...f }', 400)}"
    f" fragment f on Query {{ accounts(first: 1) {{ nodes {{ {numbered('a#: id', 20)} }} }} }}",
    "a fragment with a variable": f"{numbered('query q#($v: Boolean!) { ...f }', 340)}"
    f" fragment f on Query {{ accounts(first: 1) {{ nodes {{ {numbered('a#: id', 23)} b: id @skip(if: $v) }} }} }}",
}


async def run(_: EmbeddedPostgres) -> Iterator[Figure]:
    """Validate each kind of document, and report the slowest beside the ordinary one."""
    took = {name: median([milliseconds(query) for _ in range(ROUNDS)]) for name, query in HOSTILE.items()}
    ordinary = median([milliseconds(ORDINARY) for _ in range(ROUNDS)])
    name = max(took, key=lambda each: took[each])
    return iter([Figure(f"slowest validation ({name})", f"{took[name]:,.0f} ms", f"ordinary: {ordinary:.1f} ms")])


def milliseconds(query: str) -> float:
    """Return the time that an engine takes for a document that it has not seen."""
    engine = Engine(app.schema, guards=[cost_guard(CostLimits())])
    started = time.perf_counter()
    engine.kind(GraphQLRequest(query))
    return (time.perf_counter() - started) * 1_000
