"""A command of Django: `python manage.py deposit ACCOUNT AMOUNT`.

The app runs inside `asyncio.run`, as Django's commands are synchronous. It leaves projections to `headwater work`.
"""

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from bank.accounts.domain import Deposit
from bank.main import app
from headwater import Accepted


class Command(BaseCommand):  # type: ignore[misc]  # Django has no types of its own
    help = "Puts money into an account."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("account", type=UUID)
        parser.add_argument("amount", type=Decimal)

    def handle(self, *, account: UUID, amount: Decimal, **options: Any) -> None:
        done = asyncio.run(self._deposit(account, amount))
        self.stdout.write(f"deposited at position {done.position}")

    async def _deposit(self, account: UUID, amount: Decimal) -> Accepted:
        async with app.run(work=False) as bank:
            done = await bank.execute(Deposit(account_id=account, amount=amount), actor="django")
            if not isinstance(done, Accepted):
                raise CommandError(done.message)
            return done
