-- name: move
-- Compare-and-swap of the checkpoint, and the doorbell with it. No row: another has moved it, and nothing may be written.
with moved as (
  update headwater.projections set position = $4, updated_at = now()
   where name = $1 and generation = $2 and position = $3 and fence = $5
  returning name, position
)
select pg_notify('headwater', name || ':' || position) from moved

-- name: bury
-- A tombstone for each removed row.
insert into headwater.tombstones (projection, generation, key, position)
select $1, $2, u.key, u.position from unnest($3::uuid[], $4::bigint[]) as u(key, position)
on conflict (projection, generation, key) do update set position = excluded.position, removed_at = now()

-- name: unbury
-- A key that has a row again has no tombstone.
delete from headwater.tombstones where projection = $1 and generation = $2 and key = any($3::uuid[])
