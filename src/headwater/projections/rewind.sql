-- name: repair
-- Rows change without a new position: subscriptions read all of them again. No row: the lease is no longer held.
update headwater.projections set repairs = repairs + 1, live_since = position, forgotten = least(forgotten, position)
 where name = $1 and generation = $2 and fence = $3 and state = 'live'
returning name

-- name: unbury_beyond
-- Delete the tombstones from after a position, and return their keys.
delete from headwater.tombstones where projection = $1 and generation = $2 and position > $3 returning key

-- name: bury
-- A tombstone for each removed row.
insert into headwater.tombstones (projection, generation, key, position)
select $1, $2, u.key, u.position from unnest($3::text[], $4::bigint[]) as u(key, position)
on conflict (projection, generation, key) do update set position = excluded.position, removed_at = now()
