"""The entry point of Alembic. `headwater migrate` passes an open connection in the configuration."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table="schema_version",
    version_table_schema="headwater",
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
