-- name: begun
-- The instances among these that have begun: their stream has an event. `offset 0` keeps one index lookup an instance.
select u.stream_id from unnest($1::uuid[]) as u(stream_id)
 where exists (select from headwater.events e where e.stream_id = u.stream_id and e.version = 1 offset 0)

-- name: store
-- Write the rows of instances. An older version never overwrites a newer one. The same version is written again: its state
-- is missing while the code cannot fold the instance.
insert into headwater.sagas (stream_id, saga, key, version, position, status, state, steps, step, waiting_for, since,
                             reason, compensates, started_at, finished_at, correlation_id)
select * from unnest($1::uuid[], $2::text[], $3::uuid[], $4::int[], $5::bigint[], $6::text[], $7::json[], $8::json[],
                     $9::text[], $10::text[], $11::timestamptz[], $12::text[], $13::boolean[], $14::timestamptz[],
                     $15::timestamptz[], $16::uuid[])
on conflict (stream_id) do update
   set version = excluded.version, position = excluded.position, status = excluded.status, state = excluded.state,
       steps = excluded.steps, step = excluded.step, waiting_for = excluded.waiting_for, since = excluded.since,
       reason = excluded.reason, compensates = excluded.compensates, finished_at = excluded.finished_at,
       -- While the first event is parked (version 0), keep the time of its first failure. Once begun, use the true start.
       started_at = case when excluded.version = 0 then sagas.started_at else excluded.started_at end,
       correlation_id = excluded.correlation_id
 where sagas.version <= excluded.version

-- name: drop_not_begun
-- Remove the rows of instances that have no stream.
delete from headwater.sagas where stream_id = any($1::uuid[]) and version = 0

-- name: drop_beyond
-- Remove the rows of a saga's instances that are from after a position, with their timers, and return the instances.
with dropped as (
  delete from headwater.sagas where saga = $1 and position > $2 returning stream_id
), timers as (
  delete from headwater.timers t using dropped d where t.stream_id = d.stream_id
)
select stream_id from dropped

-- name: stop_timers
-- Remove the timers of these instances that are cancelled, or that have another time now.
delete from headwater.timers t
 where t.stream_id = any($1::uuid[])
   and not exists (select from unnest($2::uuid[], $3::text[], $4::timestamptz[]) as u(stream_id, message, due_at)
                    where u.stream_id = t.stream_id and u.message = t.message and u.due_at = t.due_at)

-- name: set_timers
-- Add timers.
insert into headwater.timers (stream_id, message, saga, due_at)
select u.stream_id, u.message, $4, u.due_at
  from unnest($1::uuid[], $2::text[], $3::timestamptz[]) as u(stream_id, message, due_at)
on conflict (stream_id, message) do nothing
