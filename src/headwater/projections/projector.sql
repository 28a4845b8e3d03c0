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
