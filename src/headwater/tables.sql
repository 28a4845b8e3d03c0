-- name: lock
-- One at a time makes or changes a projection's table.
select pg_advisory_xact_lock(hashtextextended('headwater projection ' || $1, 0))

-- name: standing
-- The live generation of a projection.
select generation, fingerprint, table_name, position, fence
  from headwater.projections
 where name = $1 and live

-- name: forget
-- A generation whose table is gone.
delete from headwater.projections where name = $1 and generation = $2

-- name: register
-- A new generation, from the beginning of the log.
insert into headwater.projections (name, generation, version, fingerprint, table_name, live)
values ($1, $2, $3, $4, $5, true)
