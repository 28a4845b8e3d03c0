"""The app: run it with `headwater dev --app bank.main:app`."""

from pathlib import Path

from bank.accounts.feature import accounts
from bank.transfers.feature import transfers
from bank.users.feature import users
from headwater import App, Example

app = App(
    features=[users, accounts, transfers],
    examples=Example.from_folder(Path(__file__).parent / "examples"),
)
