-- name: tell
-- A process's word of itself; it counts as running for some seconds from now.
insert into headwater.processes (process_id, name, serves, seen_until, report)
values ($1, $2, $3, now() + $4 * interval '1 second', $5)
on conflict (process_id) do update set seen_until = excluded.seen_until, report = excluded.report

-- name: leave
-- A process ends.
delete from headwater.processes where process_id = $1

-- name: forget
-- Processes that ended without saying so, long ago.
delete from headwater.processes where seen_until < now() - interval '1 hour'
