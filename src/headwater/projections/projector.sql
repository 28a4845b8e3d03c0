-- name: held
-- Where a generation stands, if its lease is still the one with this fence.
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

-- name: repair
-- Under the lease, held to the end of the transaction: rows change of which the checkpoint says nothing, if any do ($4).
-- Whoever shows them reads them anew: everyone is woken. No row: the lease is another's.
with repaired as (
  update headwater.projections
     set repairs = repairs + $4::int, live_since = case when $4::int > 0 then position else live_since end
   where name = $1 and generation = $2 and fence = $3 and state = 'live'
  returning name
)
select case when $4::int > 0 then pg_notify('headwater', '') end from repaired

-- name: bury
-- A tombstone for each removed row.
insert into headwater.tombstones (projection, generation, key, position)
select $1, $2, u.key, u.position from unnest($3::uuid[], $4::bigint[]) as u(key, position)
on conflict (projection, generation, key) do update set position = excluded.position, removed_at = now()

-- name: unbury
-- A key that has a row again has no tombstone.
delete from headwater.tombstones where projection = $1 and generation = $2 and key = any($3::uuid[])
