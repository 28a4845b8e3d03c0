"""The explorer: GraphiQL, built from `explorer/` and served under a strict Content-Security-Policy."""

from headwater.graphql.explorer.page import Example, explorer, explorer_routes

__all__ = ["Example", "explorer", "explorer_routes"]
