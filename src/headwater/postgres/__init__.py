"""PostgreSQL: connections, named queries, migrations, faults, and the embedded server.

Read `database` first: one `Database` a process, with a pool and connections outside it, and the lists of exceptions
that mean an unreachable database or a fault that passes. `outage` logs an unreachable database once for the whole
process. `queries` loads the `.sql` file beside a module. `array_types` spares each connection a look into the catalog.
`rejected_rows` finds the rows of a write that PostgreSQL rejects. `migrations` creates the schema, and `schema_version`
checks it. `embedded` runs the PostgreSQL of `headwater dev` and of the tests.
"""
