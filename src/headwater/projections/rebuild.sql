-- name: failure
-- The reason why the build of a generation has failed; null if it has not.
select failure from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = 'building'

-- name: mine
-- Lock the row of the lease, so that a worker that takes the lease waits for the end of this transaction. No other session waits.
select from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = 'building' for key share

-- name: begin_again
-- Move the checkpoint to the start of the log, under the same lease, and delete the dead letters. No row: the lease is lost.
with begun as (
  update headwater.projections set position = 0, updated_at = now()
   where name = $1 and generation = $2 and fence = $3 and state = 'building'
  returning name, generation
), letters as (
  delete from headwater.dead_letters d using begun b where d.projection = b.name and d.generation = b.generation
)
select generation from begun

-- name: fail
-- Record why the build has failed. A failed build is not resumed.
update headwater.projections set failure = $4, updated_at = now()
 where name = $1 and generation = $2 and fence = $3 and state = 'building'

-- name: hinder
-- Record what blocks the swap. No row: it is recorded already.
update headwater.projections set hindrance = $4, updated_at = now()
 where name = $1 and generation = $2 and fence = $3 and state = 'building' and hindrance is distinct from $4
returning generation

-- name: hold_live
-- Lock the live generation, so that its projector commits nothing until this transaction ends.
select position from headwater.projections where name = $1 and state = 'live' for update

-- name: retire
-- Retire the live generation, and the builds of older generations.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and (state = 'live' or state = 'building' and generation < $2)

-- name: publish
-- Make a generation the live one. The doorbell rings for the generation, for its position, for the leases and for all readers.
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
