-- name: standing
-- What clients read, at this moment.
select generation, table_name, position, fence, fingerprint
  from headwater.projections
 where name = $1 and state = 'live'

-- name: parked
-- Keys with dead letters: their rows stay behind, and that is known.
select distinct key from headwater.dead_letters where projection = $1 and generation = $2

-- name: verified
-- What a verification has found, for those who watch.
update headwater.projections set verified_at = now(), differences = $3 where name = $1 and generation = $2
