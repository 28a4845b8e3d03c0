"""Read models in the database: from events to rows, and from rows back to clients.

Read `projector` first: it keeps the rows of one read model. `batch_loop` is the loop that it shares with
`projection_runner`, which runs the projections that write into tables of the app's own. `row_folder` is what every loop
that folds shares: the projector, `rebuild`, `verify` and `history`. `tables` creates the tables, `generations` replaces
one by the next, and `row_codec` converts values. `reader` and `filter` answer queries, `row_events` keeps which events
a row is folded from, `tombstones` remembers removed rows, and `retire` drops what no app needs. `verify_invariants`
compares events with each other.
"""
