"""Consumers: they follow the log from a checkpoint, under a lease.

Read `consumer` first: the loop that sagas and reactors share. `loop` has the parts that every loop is built from;
`checkpoint` reads and moves a position under a fencing token; `leases` shares the units out between the workers;
`dead_letters` sets keys aside after failures; `reactor_runner` runs reactors; `scheduler` fires schedules; `standings`
reads the position and lag of each projection.
"""
