-- name: live
-- The live generation.
select generation, table_name, position, fence, fingerprint
  from headwater.projections
 where name = $1 and state = 'live'

-- name: parked
-- Keys with dead letters. Their rows lag behind the log.
select distinct key from headwater.dead_letters where projection = $1 and generation = $2

-- name: verified
-- Record the result of a verification, for monitoring.
update headwater.projections set verified_at = now(), differences = $3 where name = $1 and generation = $2
