-- name: retire
-- Retire the live generation of a read model, and the one that is being built.
update headwater.projections set state = 'retired', retired_at = now(), owner = null
 where name = $1 and state in ('live', 'building') and table_name <> ''
returning generation, table_name, state

-- name: forget
-- Delete the checkpoint of a saga or reactor, which has no rows. Its dead letters are deleted with it.
delete from headwater.projections where name = $1 and table_name = '' and name <> 'schedules' returning name

-- name: give_up
-- Close the instances that an operator has abandoned and that no worker has closed yet, and delete their timers: no worker
-- will read these instructions. An instruction is the next record after the known version of the instance.
with closed as (
  update headwater.sagas s
     set status = 'abandoned', version = e.version, position = e.position, step = null, waiting_for = null,
         since = (e.data ->> 'at')::timestamptz, finished_at = (e.data ->> 'at')::timestamptz, reason = e.data ->> 'reason'
    from headwater.events e
   where s.saga = $1 and s.status in ('running', 'undoing', 'parked')
     and e.stream_id = s.stream_id and e.version = s.version + 1 and e.type = 'SagaAbandoned'
  returning s.stream_id
), timers as (
  delete from headwater.timers t using closed where t.stream_id = closed.stream_id
)
select stream_id from closed

-- name: open
-- The number of instances of a saga that are not over.
select count(*) from headwater.sagas where saga = $1 and status in ('running', 'undoing', 'parked')

-- name: known
-- The names that can be retired.
select distinct name from headwater.projections
 where state in ('live', 'building') and name <> 'schedules'
 order by name

-- name: ring
-- Make every worker look for units to lease.
select pg_notify('headwater', 'leases:' || (extract(epoch from clock_timestamp()) * 1000)::bigint)

-- name: expired
-- Generations that were retired more than $1 seconds ago, and whose tables exist.
select name, generation, table_name from headwater.projections
 where state = 'retired' and retired_at < now() - $1 * interval '1 second'
   and to_regclass(format('read.%I', table_name)) is not null

-- name: claim
-- Lock a retired generation before its table is dropped. No row: another process drops it now, or has dropped it.
select name from headwater.projections
 where name = $1 and generation = $2 and state = 'retired' and to_regclass(format('read.%I', table_name)) is not null
   for update skip locked

-- name: clear
-- Delete the tombstones and dead letters of a dropped table. The generation's own row stays: see the column `state`.
with removed as (delete from headwater.tombstones where projection = $1 and generation = $2)
delete from headwater.dead_letters where projection = $1 and generation = $2
