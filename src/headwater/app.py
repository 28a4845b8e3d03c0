"""The app: a checked list of features, and the GraphQL schema made from them. Importing an app opens nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING

from headwater.domain.feature import Domain, Feature
from headwater.graphql.explorer.examples import Example

if TYPE_CHECKING:
    import strawberry

    from headwater.config import Settings
    from headwater.server.asgi import MountedApp
    from headwater.server.running import RunningApp


class App:
    """An app, as `headwater serve --app module:app` runs it: `app = App(features=[users, accounts])`.

    examples: the operations that the explorer shows first; without any, they are made from the schema.

    Raises:
        DefinitionError: a declaration of a feature is wrong; the message names the class and the field.
    """

    def __init__(self, features: Sequence[Feature], *, examples: Sequence[Example] = ()) -> None:
        self.domain = Domain(features)
        self.examples = tuple(examples)

    @cached_property
    def schema(self) -> strawberry.Schema:
        """The GraphQL schema, which the first use makes."""
        from headwater.graphql.schema import schema_of  # most commands run without GraphQL

        return schema_of(self.domain)

    def run(
        self, settings: Settings | str | None = None, *, work: bool = True
    ) -> AbstractAsyncContextManager[RunningApp]:
        """Run the app in this process, for a Python program.

            async with app.run("postgresql://localhost/bank") as bank:
                await bank.execute(Deposit(account_id=account, amount=Decimal(5)), actor="teller 7")

        settings: of the process. A text is the URL of the database; the other settings are those of the environment.
        Without a database (no DATABASE_URL), it runs on the PostgreSQL of `headwater dev`, and migrates it.
        work: also run projections, sagas, reactors and schedules, sharing them with every other worker of the database.
        Beside `headwater work`, a program that runs for a moment should leave that to it: `work=False`.

        Leaving the block answers the commands in flight, ends all iterations, gives the leases back and closes every
        connection, within HEADWATER_SHUTDOWN_SECONDS.

        Raises, on entering:
            SettingsError: a setting cannot be used, or the database cannot be reached.
            SchemaMissing: the database is not migrated: run `headwater migrate`.
            Unsuitable: the server, or a right of the role, is not what Headwater needs.
            LogUnreadable: the log holds events that this app cannot read.
        """
        from headwater.server.running import running, settings_of  # only by a program that runs the app

        return running(self, settings_of(settings), work=work)

    def asgi(self, settings: Settings | str | None = None, *, work: bool = True) -> MountedApp:
        """Return the app as an ASGI application: GraphQL, subscriptions, explorer. A host mounts it under any prefix.

            bank = app.asgi()
            host = FastAPI(lifespan=bank.lifespan)
            host.mount("/bank", bank)                  # /bank/graphql

        settings, work: as for `run`. Settings of the server (host, port, pacing) are the host's own.

        It opens with the host's lifespan, with its own where a server runs it alone, or else with the first request; a
        failure to open is then answered with 503. It closes with that lifespan, or with the event loop.
        """
        from headwater.server.asgi import MountedApp  # only by a program that mounts the app
        from headwater.server.running import settings_of

        return MountedApp(self, settings_of(settings), work=work)
