-- name: retire
-- No generation of a read model is kept any more; what was live and what was being built.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and state in ('live', 'building') and table_name <> ''
returning generation, table_name, state

-- name: forget
-- A saga or a reactor has no rows: where it stands is forgotten, and with it what waits for it as dead letters.
delete from headwater.projections where name = $1 and table_name = '' and name <> 'schedules' returning name

-- name: give_up
-- Instances of a saga that a person has abandoned since a worker last looked are over, and nothing of them falls due: no
-- worker comes to say so. What a person says is the next record after what the instance was known to be.
with said as (
  update headwater.sagas s
     set status = 'abandoned', version = e.version, position = e.position, step = null, waiting_for = null,
         since = (e.data ->> 'at')::timestamptz, finished_at = (e.data ->> 'at')::timestamptz, reason = e.data ->> 'reason'
    from headwater.events e
   where s.saga = $1 and s.status in ('running', 'undoing', 'parked')
     and e.stream_id = s.stream_id and e.version = s.version + 1 and e.type = 'SagaAbandoned'
  returning s.stream_id
), timers as (
  delete from headwater.timers t using said where t.stream_id = said.stream_id
)
select stream_id from said

-- name: open
-- How many instances of a saga are not over.
select count(*) from headwater.sagas where saga = $1 and status in ('running', 'undoing', 'parked')

-- name: known
-- What there is to retire.
select distinct name from headwater.projections
 where state in ('live', 'building') and name <> 'schedules'
 order by name

-- name: ring
-- Workers: look what is yours.
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)

-- name: expired
-- Generations retired for so many seconds whose tables are still there.
select name, generation, table_name from headwater.projections
 where state = 'retired' and retired_at < now() - $1 * interval '1 second'
   and to_regclass(format('read.%I', table_name)) is not null

-- name: claim
-- One of them, for whoever drops it. No row: another does so now, or has done it.
select name from headwater.projections
 where name = $1 and generation = $2 and state = 'retired' and to_regclass(format('read.%I', table_name)) is not null
   for update skip locked

-- name: clear
-- What was kept beside a table that is gone. The generation's own row stays: see the column `state`.
with buried as (delete from headwater.tombstones where projection = $1 and generation = $2)
delete from headwater.dead_letters where projection = $1 and generation = $2
