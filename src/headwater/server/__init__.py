"""One running process: what it opens and runs, its HTTP server, and what it reports about itself.

Begin with `node`: the process without HTTP. `web` serves a node over HTTP, `worker` runs the units that the leases give
to it, `self_report` writes the process's row for `headwater status`, and `exporters` formats measurements.
"""
