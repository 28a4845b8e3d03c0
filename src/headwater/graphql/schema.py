"""The GraphQL schema of an app, generated from its domain."""

from __future__ import annotations

import strawberry
from strawberry.schema.config import StrawberryConfig

from headwater.domain.feature import Domain
from headwater.graphql.building import Generated, Info, new_class, resolver
from headwater.graphql.commands import Mutations
from headwater.graphql.events import events_query, events_subscription
from headwater.graphql.interfaces import Node
from headwater.graphql.node_ids import no_node, parse_node_id
from headwater.graphql.rows import RowTypes
from headwater.graphql.sagas import saga_query, sagas_query
from headwater.graphql.scalars import SCALARS
from headwater.graphql.values import ValueTypes
from headwater.sagas.operations import limits_of


def schema_of(domain: Domain) -> strawberry.Schema:
    """Return the schema. Types, inputs, filters and descriptions come from the domain's types and docstrings."""
    values = ValueTypes()
    rows = RowTypes(domain.views, values)
    mutations = Mutations(domain, rows, values)
    query: dict[str, object] = {"node": _node(rows), "events": events_query()}
    subscription: dict[str, object] = {"events": events_subscription()}
    if domain.sagas:
        limits = limits_of(domain)
        query |= {"sagas": sagas_query(limits), "saga": saga_query(limits)}
    for each in rows.all():
        query |= each.query_fields()
        subscription |= each.subscription_fields()
    return strawberry.Schema(
        query=_root("Query", query),
        mutation=_root("Mutation", fields) if (fields := mutations.fields()) else None,
        subscription=_root("Subscription", subscription),
        types=[*(each.object for each in rows.all()), *mutations.refusals()],
        config=StrawberryConfig(scalar_map=SCALARS, disable_field_suggestions=True),
    )


def print_schema(schema: strawberry.Schema) -> str:
    """Return the schema as SDL, the content of `schema.graphql`."""
    return schema.as_str().rstrip() + "\n"


def _root(name: str, fields: dict[str, object]) -> Generated:
    return strawberry.type(new_class(name, **fields))


def _node(rows: RowTypes) -> object:
    of_name = {each.view.name: each for each in rows.all()}

    async def resolve(root: object, info: Info, id: strawberry.ID) -> object | None:
        name, text, as_of = parse_node_id(id)
        if name not in of_name:
            raise no_node(id)
        try:
            key = of_name[name].view.key.parse(text)
        except ValueError:
            raise no_node(id) from None
        return await of_name[name].node(info, key, as_of)

    return strawberry.field(
        resolver=resolver(resolve, Node | None, id=strawberry.ID),
        description="The row of any read model by its id, of now or of the past.",
    )
