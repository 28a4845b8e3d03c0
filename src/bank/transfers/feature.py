"""Transfers: the list of what this feature declares."""

from bank.transfers.domain import transfers as transfers_decider
from bank.transfers.saga import transfer as transfer_saga
from bank.transfers.views import transfer_view
from headwater import Feature

transfers = Feature(deciders=[transfers_decider], views=[transfer_view], sagas=[transfer_saga])
