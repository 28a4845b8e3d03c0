"""Users: the list of what this feature declares."""

from bank.users.domain import users as users_decider
from bank.users.views import user_view
from headwater import Feature

users = Feature(deciders=[users_decider], views=[user_view])
