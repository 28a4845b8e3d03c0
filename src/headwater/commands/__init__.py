"""From a command to its place in the log.

Read `dispatcher` first: it decides a command on the state of its stream and appends the events, and decides again when
another writer was quicker. `stream_cache` keeps the states of recently used streams in memory.
"""
