"""The bank, Headwater's bundled domain. Every lost or doubled event would show as wrong money.

Read `users` first: it is the smallest feature. Then read `accounts`, and `transfers` for the saga. In each, `domain`
comes first.
"""
