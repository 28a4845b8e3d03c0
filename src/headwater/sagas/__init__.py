"""Sagas at run time: instances that react to events, issue steps, undo them and wait for timers.

Read `conductor` first: it runs the instances of one saga under a lease. `instances` keeps them in memory, in their
streams and in `headwater.sagas`; `steps` issues their commands; `timers` delivers their messages when due;
`operations` lists instances for an operator, and retries or abandons them. The declaration of a saga and the pure fold
of an instance are in `headwater.domain`.
"""
