"""The explorer: GraphiQL, built from `console/` and served under a strict Content-Security-Policy."""

from headwater.console.page import Example, console_routes, explorer

__all__ = ["Example", "console_routes", "explorer"]
