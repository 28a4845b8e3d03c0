-- name: there
-- Which of these instances have begun.
select u.stream_id from unnest($1::uuid[]) as u(stream_id)
 where exists (select from headwater.events e where e.stream_id = u.stream_id and e.version = 1 offset 0)

-- name: keep
-- Instances as their streams tell them; a later telling is never overwritten by an earlier one. The same one may tell more:
-- what today's code cannot fold, it can when it is mended.
insert into headwater.sagas (stream_id, saga, key, version, position, status, state, steps, step, waiting_for, since,
                             reason, compensates, started_at, finished_at, correlation_id)
select * from unnest($1::uuid[], $2::text[], $3::uuid[], $4::int[], $5::bigint[], $6::text[], $7::json[], $8::json[],
                     $9::text[], $10::text[], $11::timestamptz[], $12::text[], $13::boolean[], $14::timestamptz[],
                     $15::timestamptz[], $16::uuid[])
on conflict (stream_id) do update
   set version = excluded.version, position = excluded.position, status = excluded.status, state = excluded.state,
       steps = excluded.steps, step = excluded.step, waiting_for = excluded.waiting_for, since = excluded.since,
       reason = excluded.reason, compensates = excluded.compensates, finished_at = excluded.finished_at,
       -- One that has begun after all began then; one that fails to again has been here since it first did.
       started_at = case when excluded.version = 0 then sagas.started_at else excluded.started_at end,
       correlation_id = excluded.correlation_id
 where sagas.version <= excluded.version

-- name: drop_unbegun
-- Instances that have no stream, and nothing that is set aside for them any more.
delete from headwater.sagas where stream_id = any($1::uuid[]) and version = 0

-- name: stop_timers
-- Messages that do not fall due any more, or at another time.
delete from headwater.timers t
 where t.stream_id = any($1::uuid[])
   and not exists (select from unnest($2::uuid[], $3::text[], $4::timestamptz[]) as u(stream_id, message, due_at)
                    where u.stream_id = t.stream_id and u.message = t.message and u.due_at = t.due_at)

-- name: set_timers
-- Messages that fall due.
insert into headwater.timers (stream_id, message, saga, due_at)
select u.stream_id, u.message, $4, u.due_at
  from unnest($1::uuid[], $2::text[], $3::timestamptz[]) as u(stream_id, message, due_at)
on conflict (stream_id, message) do nothing
