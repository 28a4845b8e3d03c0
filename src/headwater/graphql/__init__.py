"""The GraphQL API: the schema made from the domain, the engine that runs operations, and the transports.

Read `schema` first for the types: it puts together `rows` (read models), `commands` (mutations), `events`
and `sagas`. Read `engine` first for the way of a request: `http` and `websocket` (with `socket`) hand a `request` to
it, `documents` parses and validates the text under the limits of `cost` and `merging`, and `result` decides which
errors a client may read. `scope` is the context of one operation.
"""
