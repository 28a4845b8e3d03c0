-- name: failure
-- Why the build of a generation has failed; null if it has not.
select failure from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = 'building'

-- name: mine
-- Under the lease: whoever takes over has to wait for the end of the transaction. Nobody else has to.
select from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = 'building' for key share

-- name: begin_again
-- From the start of the log, under the same lease: what was set aside goes with the rows. No row: it is another's.
with begun as (
  update headwater.projections set position = 0, updated_at = now()
   where name = $1 and generation = $2 and fence = $3 and state = 'building'
  returning name, generation
), letters as (
  delete from headwater.dead_letters d using begun b where d.projection = b.name and d.generation = b.generation
)
select generation from begun

-- name: fail
-- Why it stands still, and is not gone on with.
update headwater.projections set failure = $4, updated_at = now()
 where name = $1 and generation = $2 and fence = $3 and state = 'building'

-- name: hinder
-- What is in the way of its swap. No row: that is known.
update headwater.projections set hindrance = $4, updated_at = now()
 where name = $1 and generation = $2 and fence = $3 and state = 'building' and hindrance is distinct from $4
returning generation

-- name: hold_live
-- What clients read until now, held: its projector commits nothing until this transaction ends.
select position from headwater.projections where name = $1 and state = 'live' for update

-- name: retire
-- What was live, and what older code is building beside it, gives place to a newer generation.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and (state = 'live' or state = 'building' and generation < $2)

-- name: publish
-- A generation is the one that clients read. Everyone is told, also those who wait for a position.
with live as (
  update headwater.projections set state = 'live', live_since = position, hindrance = null, updated_at = now()
   where name = $1 and generation = $2 and fence = $3 and position = $4 and state = 'building'
  returning name, generation, position
)
select pg_notify('headwater', name || ' generation:' || generation),
       pg_notify('headwater', name || ':' || position),
       pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint),
       pg_notify('headwater', '')
  from live
