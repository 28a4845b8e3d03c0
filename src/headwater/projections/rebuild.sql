-- name: failure
-- The reason why the build of a generation has failed; null if it has not.
select failure from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = 'building'

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
