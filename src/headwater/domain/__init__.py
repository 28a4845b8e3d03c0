"""The pure part of Headwater: the classes that a user declares an app with. No database, no web, no clock.

Read `messages` first (commands, events and refusals), then `decider`, `read_model` and `saga`. `feature` collects the
declarations of an app and checks them against each other. `headwater` itself exports the names that users need.
"""
