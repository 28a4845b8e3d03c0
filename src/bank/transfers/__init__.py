"""Transfers: money on its way from one account to another."""
