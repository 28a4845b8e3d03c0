-- name: read
-- The checkpoint of a generation. No row: the lease is no longer held.
select position from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = $4

-- name: move
-- Compare-and-swap of the checkpoint; a live generation rings its doorbell. No row: nothing may be written.
with moved as (
  update headwater.projections set position = $6, failure = null, updated_at = now()
   where name = $1 and generation = $2 and fence = $3 and state = $4 and position = $5
  returning name, position, state
)
select case when state = 'live' then pg_notify('headwater', name || ':' || position) end from moved

-- name: rewind_to
-- The position that the unit must be taken back to; null, or no row, if it need not be.
select rewind_to from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = $4

-- name: go_back
-- Compare-and-swap of the checkpoint, back to the end of a shorter log. No row: nothing may be written.
update headwater.projections set position = $6, failure = null, rewind_to = null, updated_at = now()
 where name = $1 and generation = $2 and fence = $3 and state = $4 and position = $5
returning true

-- name: skip
-- The same as `move` where the batch writes nothing: one statement of its own, whose commit does not wait for the disk.
with session as materialized (
  select set_config('synchronous_commit', 'off', true) as off
), moved as (
  update headwater.projections set position = $6, failure = null, updated_at = now()
   where name = $1 and generation = $2 and fence = $3 and state = $4 and position = $5
     and exists (select from session where off = 'off')
  returning name, position, state
)
select case when state = 'live' then pg_notify('headwater', name || ':' || position) end from moved

-- name: halt
-- Record why the unit halts before an event. Moving on clears it.
update headwater.projections set failure = $5
 where name = $1 and generation = $2 and fence = $3 and state = $4 and failure is distinct from $5

-- name: hold
-- Lock the lease until the transaction ends. No row: it is no longer held.
select true from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = $4 for update

-- name: register
-- A unit without a table, from the beginning of the log or ($3) from its end.
insert into headwater.projections (name, generation, version, fingerprint, table_name, position, state)
select $1, 1, 1, $2, '', case when $3 then h.position else 0 end, 'live' from headwater.head h
on conflict do nothing

-- name: adopt
-- Hand a unit to another declaration, without an owner. A declaration that had it before gets it back only if ($3) that is
-- insisted on. A projection is handed over in the same way: what changes here changes there.
update headwater.projections
   set earlier = array_append(array_remove(earlier, fingerprint), fingerprint), fingerprint = $2, fence = fence + 1,
       owner = null
 where name = $1 and state = 'live' and fingerprint <> $2 and ($3 or $2 <> all(earlier))

-- name: ring
-- Tell the workers that there is a unit to lease.
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
