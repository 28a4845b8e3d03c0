-- name: held
-- Where a unit stands, if its lease is still the one with this fence.
select position from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = 'live'

-- name: move
-- Compare-and-swap of the checkpoint, and the doorbell with it. No row: another has moved it, and nothing may be written.
with moved as (
  update headwater.projections set position = $5, updated_at = now()
   where name = $1 and generation = $2 and position = $4 and fence = $3 and state = 'live'
  returning name, position
)
select pg_notify('headwater', name || ':' || position) from moved

-- name: pass
-- The same where nothing is written: of itself, in one statement, and no commit that waits for the disk.
with session as materialized (
  select set_config('synchronous_commit', 'off', true) as off
), moved as (
  update headwater.projections set position = $5, updated_at = now()
   where name = $1 and generation = $2 and position = $4 and fence = $3 and state = 'live'
     and exists (select from session where off = 'off')
  returning name, position
)
select pg_notify('headwater', name || ':' || position) from moved

-- name: mine
-- Under the lease, held to the end of the transaction. No row: it is another's.
select true from headwater.projections where name = $1 and generation = $2 and fence = $3 and state = 'live' for update

-- name: register
-- A unit without a table: from the beginning of the log, or ($3) from its end.
insert into headwater.projections (name, generation, version, fingerprint, table_name, position, state)
select $1, 1, 1, $2, '', case when $3 then h.position else 0 end, 'live' from headwater.head h
on conflict do nothing

-- name: adopt
-- A unit of another declaration is this one's from now on, and nobody's yet; not one that this one has given away before,
-- unless ($3) that is insisted on. It is handed over as in tables.sql: what changes here, changes there.
update headwater.projections
   set earlier = array_append(array_remove(earlier, fingerprint), fingerprint), fingerprint = $2, fence = fence + 1,
       owner = null
 where name = $1 and state = 'live' and fingerprint <> $2 and ($3 or $2 <> all(earlier))

-- name: ring
-- Workers: there is something to lease.
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
