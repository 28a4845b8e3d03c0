"""Sagas at run time: instances that react to events, issue steps, undo them and wait for timers.

Read `conductor` first: it runs the instances of one saga under a lease. `instances` keeps them in memory, in their
streams and in `headwater.sagas`; `steps` issues their commands; `timers` delivers their messages when due;
`operations` is what a person does to an instance. What a saga declares, and the pure fold of an instance, are in
`headwater.domain`.
"""
