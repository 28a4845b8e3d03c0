"""Subscriptions to read models: the rows now, then every change.

Begin with `subscriptions`: what each kind of subscription sends. `feed` reads the changed rows of a read model once a
process and gives them to a `watcher` for each subscription, which holds the latest state of each changed key.
"""
