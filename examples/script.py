"""A script: opens an account, puts money in, takes too much out, and prints each step.

python examples/script.py                                          on the PostgreSQL of `headwater dev`
DATABASE_URL=postgresql://... python examples/script.py            on a database that is migrated
"""

import asyncio
from decimal import Decimal
from uuid import uuid4

from bank.accounts.domain import Deposit, InsufficientFunds, OpenAccount, Withdraw
from bank.accounts.views import AccountView
from bank.main import app
from headwater import Accepted


async def main() -> None:
    account = uuid4()
    async with app.run() as bank:
        await bank.execute(OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
        deposited = await bank.execute(Deposit(account_id=account, amount=Decimal("12.50")), actor="script")
        assert isinstance(deposited, Accepted), deposited.message

        row = await bank.get(AccountView, account, at_least=deposited)
        assert row is not None
        print(f"balance {row.balance:.2f} {row.currency}")

        match await bank.execute(Withdraw(account_id=account, amount=Decimal(20)), actor="script"):
            case Accepted():
                print("withdrawn")
            case InsufficientFunds(balance=balance):
                print(f"there are only {balance:.2f}")
            case refusal:
                print(refusal.message)

        async for event in bank.events(stream_id=account):
            print(event.version, type(event.data).__name__, event.actor)


if __name__ == "__main__":
    asyncio.run(main())
