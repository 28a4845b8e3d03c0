-- name: write
-- Write the report of a process, which counts as running for $4 seconds from now.
insert into headwater.processes (process_id, name, serves, seen_until, report)
values ($1, $2, $3, now() + $4 * interval '1 second', $5)
on conflict (process_id) do update set seen_until = excluded.seen_until, report = excluded.report

-- name: leave
-- Remove the row of a process that ends.
delete from headwater.processes where process_id = $1

-- name: forget
-- Remove the rows of processes that ended long ago without removing them.
delete from headwater.processes where seen_until < now() - interval '1 hour'
