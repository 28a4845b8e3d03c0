"""One running process: what it opens and runs, its HTTP server, and what it reports about itself.

Begin with `node`: the process without HTTP. `worker` runs the units that the leases give to it, `web` is the API as an
application, `monitoring` the routes of every process, and `http_server` serves either. `self_report` writes the
process's row for `headwater status`, and `exporters` formats measurements.
"""
