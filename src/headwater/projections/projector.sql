-- name: repair
-- Lock the row of the lease before dead letters are folded. $4: 1 if rows change, 0 if none does. The checkpoint does not move
-- with them, so the edition changes and all readers are woken to read again. No row: the lease is lost.
with repaired as (
  update headwater.projections
     set repairs = repairs + $4::int, live_since = case when $4::int > 0 then position else live_since end
   where name = $1 and generation = $2 and fence = $3 and state = 'live'
  returning name
)
select case when $4::int > 0 then pg_notify('headwater', '') end from repaired

-- name: bury
-- Write a tombstone for each removed row.
insert into headwater.tombstones (projection, generation, key, position)
select $1, $2, u.key, u.position from unnest($3::text[], $4::bigint[]) as u(key, position)
on conflict (projection, generation, key) do update set position = excluded.position, removed_at = now()

-- name: unbury
-- Delete the tombstones of keys that have a row again.
delete from headwater.tombstones where projection = $1 and generation = $2 and key = any($3::text[])
