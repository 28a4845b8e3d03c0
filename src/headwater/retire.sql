-- name: retire
-- No generation of a read model is kept any more; what was live and what was being built.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and state in ('live', 'building') and table_name <> ''
returning generation, table_name, state

-- name: forget
-- A saga or a reactor has no rows: where it stands is forgotten, and with it what waits for it as dead letters.
delete from headwater.projections where name = $1 and table_name = '' and name <> 'schedules' returning name

-- name: known
-- What there is to retire.
select distinct name from headwater.projections
 where state in ('live', 'building') and name <> 'schedules'
 order by name

-- name: ring
-- Workers: look what is yours.
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)
