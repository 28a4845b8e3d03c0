"""The explorer: GraphiQL, built from the `explorer/` folder of the source checkout into `static/`.

`page` serves it under a strict Content-Security-Policy. The page loads nothing from other hosts.
"""

from headwater.graphql.explorer.page import Example, explorer, explorer_routes

__all__ = ["Example", "explorer", "explorer_routes"]
