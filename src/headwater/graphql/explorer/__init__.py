"""The explorer: GraphiQL, built from the `explorer/` folder of the source checkout into `static/`.

`page` serves it under a strict Content-Security-Policy. The page loads nothing from other hosts. `examples` has the
operations that it shows first.
"""
