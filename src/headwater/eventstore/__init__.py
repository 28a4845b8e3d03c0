"""The log: events in commit order, each with a contiguous position, and what is known of where it ends.

Read `log` first: `append` writes a batch of commands, `Log` reads by stream or by position. `appender` groups the
commands of a process into batches, `doorbell` announces new positions and `positions` lets tasks wait for them,
`snapshots` keeps states of long streams, `audit_trail` shows events as they are stored, and `compatibility` checks that
the app reads every kind of event in the log.
"""
