"""Accounts: each holds money in one currency."""
