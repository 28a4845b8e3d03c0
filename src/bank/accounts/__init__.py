"""Accounts: where money lies."""
